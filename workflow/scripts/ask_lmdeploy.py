"""Let one model directory answer questions in LMDeploy."""

from vlmflow.cli import run
from vlmflow.evaluation.ask_lmdeploy import ask_lmdeploy

if __name__ == "__main__":  # LMDeploy starts processes that import this file
    run(ask_lmdeploy)
