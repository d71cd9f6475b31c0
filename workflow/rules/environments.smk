"""Where jobs find their software, which change of it counts, and what jobs do not get; docs/environments.md."""

from snakemake.deployment.env_modules import EnvModules
from snakemake.persistence import PersistenceBase
from snakemake.settings.types import DeploymentMethod

from vlmflow import secrets

MODULES = plan.config["environment_modules"]

if plan.config["container"]:

    containerized: plan.config["container"]


def pins(_, job):
    """Hash of the packages that conda installs for a job; None where somebody else installed them."""
    methods = workflow.deployment_settings.deployment_method
    used = DeploymentMethod.CONDA in methods and job.conda_env
    return used.content_hash if used else None


def pins_changed(records, job, file):
    known = {records.software_stack_hash(file), pins(records, job)} - {None}
    return len(known) > 1


# Snakemake would train again after a switch between conda, container and modules, after a change of a module's or
# container's name, and after the repository was moved. Only other pins make another result.
PersistenceBase._software_stack_hash = pins
PersistenceBase._software_stack_changed = pins_changed


def load_modules(modules, command):
    return f"module purge && module load {' '.join(modules.names)} || exit 1; {command}"


# Snakemake would go on without a module that is not there.
EnvModules.shellcmd = load_modules


def hide_secrets():
    """Before the first job: a cluster would give them to every job."""
    if not workflow.local_exec:
        generated = [
            node["generate"]
            for node in plan.config["datasets"].values()
            if "generate" in node
        ]
        passed = workflow.remote_execution_settings.envvars
        secrets.hide(
            os.environ,
            also=[*(node["key_variable"] for node in generated), *plan.judge_keys()],
            but=passed,
        )
