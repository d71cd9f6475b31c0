"""Start the processes of a stage: launch.py [--nodes N] [--gpus G] [--processes P] -- SCRIPT ARGUMENTS"""

from vlmflow.cluster.launch import main

main()
