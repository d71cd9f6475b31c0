"""Write the deployment directory of one merged model."""

from vlmflow.cli import run
from vlmflow.deploy import convert_model

run(convert_model)
