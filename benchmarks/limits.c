/* The selective scan by hand, forward and backward: what a CPU can do, which the rows of the benchmark are ratios to.

   h[t] = exp(dt[t] A) h[t-1] + dt[t] x[t] B[t]      y[t] = sum over n of C[t, n] h[t, n]

   x, dt, y and their gradients are (length, channels), A is (STATES, channels), B and C are (length, STATES); one row,
   no initial state. Sixteen channels fill a vector (GCC's and Clang's vector extension: the compiler makes AVX-512, AVX2
   or NEON of it); a thread takes a range of channels. The backward pass keeps the states at chunk boundaries and makes
   those inside of a chunk again, for all channels of the thread before it goes to the chunk before.
*/

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define STATES 16
#define LANES 16
#define CHUNK 32
#define MOST_THREADS 64

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int ivec __attribute__((vector_size(4 * LANES), aligned(4)));

static inline vec load(const float *p) { return *(const vec *)p; }
static inline void store(float *p, vec v) { *(vec *)p = v; }

/* exp for arguments up to 0: 2^whole times a polynomial of the rest, to about two units in the last place. */
static inline vec exponential(vec x) {
    x = x * 1.44269504f;
    vec low = (vec){} - 126.0f;
    ivec above = x > low;
    x = (vec)(((ivec)x & above) | ((ivec)low & ~above));
    vec magic = (vec){} + 12582912.0f;
    vec shifted = x + magic;
    vec rest = x - (shifted - magic);
    vec p = rest * 0.0013333558f + 0.0096181291f;
    p = p * rest + 0.0555041087f;
    p = p * rest + 0.2402265070f;
    p = p * rest + 0.6931471806f;
    p = p * rest + 1.0f;
    return (vec)((ivec)p + ((ivec)shifted << 23));
}

static inline float total(vec v) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}

typedef struct {
    int length, channels, first, last; /* this thread's channels: first to last - 1 */
    const float *x, *dt, *A, *B, *C, *dy;
    float *y, *entering; /* entering: (chunks, STATES, channels), or NULL where it is not kept */
    float *dx, *ddt, *dA, *dB, *dC;
} Work;

static void *forward(void *argument) {
    const Work *w = argument;
    const int width = w->channels;
    for (int c = w->first; c < w->last; c += LANES) {
        vec h[STATES], A[STATES];
        for (int n = 0; n < STATES; n++) h[n] = (vec){}, A[n] = load(w->A + n * width + c);
        for (int t = 0; t < w->length; t++) {
            if (w->entering && t % CHUNK == 0)
                for (int n = 0; n < STATES; n++) store(w->entering + ((t / CHUNK) * STATES + n) * (long)width + c, h[n]);
            vec dt = load(w->dt + (long)t * width + c), drive = dt * load(w->x + (long)t * width + c), y = {};
            for (int n = 0; n < STATES; n++) {
                h[n] = exponential(dt * A[n]) * h[n] + drive * w->B[t * STATES + n];
                y += h[n] * w->C[t * STATES + n];
            }
            store(w->y + (long)t * width + c, y);
        }
    }
    return NULL;
}

static void *backward(void *argument) {
    const Work *w = argument;
    const int width = w->channels, mine = w->last - w->first, chunks = (w->length + CHUNK - 1) / CHUNK;
    vec(*h)[STATES] = malloc(sizeof(vec) * STATES * (CHUNK + 1));
    vec(*decays)[STATES] = malloc(sizeof(vec) * STATES * CHUNK);
    vec(*dB)[STATES] = malloc(sizeof(vec) * STATES * CHUNK), (*dC)[STATES] = malloc(sizeof(vec) * STATES * CHUNK);
    float *g_all = calloc((size_t)STATES * mine, sizeof(float)), *dA_all = calloc((size_t)STATES * mine, sizeof(float));
    for (int chunk = chunks - 1; chunk >= 0; chunk--) {
        const int start = chunk * CHUNK, steps = w->length - start < CHUNK ? w->length - start : CHUNK;
        memset(dB, 0, sizeof(vec) * STATES * CHUNK);
        memset(dC, 0, sizeof(vec) * STATES * CHUNK);
        for (int c = w->first; c < w->last; c += LANES) {
            vec A[STATES], g[STATES], dA[STATES];
            const int at = c - w->first;
            for (int n = 0; n < STATES; n++) {
                A[n] = load(w->A + n * width + c);
                h[0][n] = load(w->entering + ((long)chunk * STATES + n) * width + c);
            }
            for (int j = 0; j < steps; j++) {
                const long t = start + j;
                vec dt = load(w->dt + t * width + c), drive = dt * load(w->x + t * width + c);
                for (int n = 0; n < STATES; n++) {
                    decays[j][n] = exponential(dt * A[n]);
                    h[j + 1][n] = decays[j][n] * h[j][n] + drive * w->B[t * STATES + n];
                }
            }
            for (int n = 0; n < STATES; n++) g[n] = load(g_all + n * mine + at), dA[n] = load(dA_all + n * mine + at);
            for (int j = steps - 1; j >= 0; j--) {
                const long t = start + j;
                vec dt = load(w->dt + t * width + c), x = load(w->x + t * width + c), dy = load(w->dy + t * width + c);
                vec drive = dt * x, gB = {}, qA = {};
                for (int n = 0; n < STATES; n++) {
                    g[n] += dy * w->C[t * STATES + n];
                    gB += g[n] * w->B[t * STATES + n];
                    dB[j][n] += g[n] * drive;
                    dC[j][n] += h[j + 1][n] * dy;
                    g[n] *= decays[j][n];
                    vec q = g[n] * h[j][n];
                    qA += q * A[n];
                    dA[n] += q * dt;
                }
                store(w->dx + t * width + c, dt * gB);
                store(w->ddt + t * width + c, x * gB + qA);
            }
            for (int n = 0; n < STATES; n++) store(g_all + n * mine + at, g[n]), store(dA_all + n * mine + at, dA[n]);
        }
        for (int j = 0; j < steps; j++)
            for (int n = 0; n < STATES; n++) {
                w->dB[(start + j) * STATES + n] = total(dB[j][n]);
                w->dC[(start + j) * STATES + n] = total(dC[j][n]);
            }
    }
    for (int n = 0; n < STATES; n++) memcpy(w->dA + n * width + w->first, dA_all + (long)n * mine, mine * sizeof(float));
    free(h), free(decays), free(dB), free(dC), free(g_all), free(dA_all);
    return NULL;
}

/* Runs `function` on equal ranges of the channels; the caller's thread takes the first. */
static void share(void *(*function)(void *), const Work *all, Work *parts, int threads) {
    pthread_t ids[MOST_THREADS];
    const int range = (all->channels / LANES + threads - 1) / threads * LANES;
    for (int i = 0; i < threads; i++) {
        parts[i].first = i * range < all->channels ? i * range : all->channels;
        parts[i].last = (i + 1) * range < all->channels ? (i + 1) * range : all->channels;
        if (i) pthread_create(&ids[i], NULL, function, &parts[i]);
    }
    function(&parts[0]);
    for (int i = 1; i < threads; i++) pthread_join(ids[i], NULL);
}

/* channels: a multiple of 16. threads: at most 64. */
void scan_forward(int threads, int length, int channels, const float *x, const float *dt, const float *A,
                  const float *B, const float *C, float *y) {
    Work all = {.length = length, .channels = channels, .x = x, .dt = dt, .A = A, .B = B, .C = C, .y = y};
    Work parts[MOST_THREADS];
    for (int i = 0; i < threads; i++) parts[i] = all;
    share(forward, &all, parts, threads);
}

void scan_gradient(int threads, int length, int channels, const float *x, const float *dt, const float *A,
                   const float *B, const float *C, const float *dy, float *y, float *dx, float *ddt, float *dA,
                   float *dB, float *dC) {
    const long chunks = (length + CHUNK - 1) / CHUNK, small = (long)length * STATES;
    float *entering = malloc(sizeof(float) * chunks * STATES * channels);
    float *partial = malloc(sizeof(float) * 2 * small * threads);
    Work all = {.length = length, .channels = channels, .x = x, .dt = dt, .A = A, .B = B, .C = C, .dy = dy, .y = y,
                .entering = entering, .dx = dx, .ddt = ddt, .dA = dA};
    Work parts[MOST_THREADS];
    for (int i = 0; i < threads; i++)
        parts[i] = all, parts[i].dB = partial + 2 * i * small, parts[i].dC = partial + (2 * i + 1) * small;
    share(forward, &all, parts, threads);
    share(backward, &all, parts, threads);
    for (long j = 0; j < small; j++) {
        dB[j] = dC[j] = 0;
        for (int i = 0; i < threads; i++) dB[j] += partial[2 * i * small + j], dC[j] += partial[(2 * i + 1) * small + j];
    }
    free(entering), free(partial);
}
