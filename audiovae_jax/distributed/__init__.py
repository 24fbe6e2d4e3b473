"""The processes of a run on several hosts: how they find each other, agree, stop together and fail together."""
