"""Published weights in and out.

rules.py        how tensors of theirs and leaves of ours correspond, in both directions
family.py       the record of a published family of models, and what its readers share
families/       one file a family, one table
huggingface.py  folders of config.json and safetensors
"""
