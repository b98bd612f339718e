"""The verb `push`: upload a finished artifact to a model repository of the Hugging Face Hub.

Without `--upload` it only prints what would go where, and needs neither network nor token. Both ways it
refuses an artifact that is not whole, did not pass its checks, or lacks what the base's licence requires. It
creates the repository and makes one commit; it never changes the visibility of an existing repository.
"""

from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # public by its own docs

from trainer.config import RunConfig
from trainer.errors import ArtifactError, ConfigError, GateError, MissingError, TrainerError
from trainer.licence import llama_terms, wrong_name
from trainer.progress import say
from trainer.ship.export import exported
from trainer.ship.manifest import MANIFEST
from trainer.ship.store import Artifact, newest

# Weights of an earlier push under other names would be loaded in place of these.
REPLACED = ["*.safetensors", "*.safetensors.index.json", "*.gguf"]


def push(
    config: RunConfig,
    artifacts: Path,
    repository: str,
    private: bool,
    upload: bool,
    allow_override: bool,
    form: str | None = None,
) -> None:
    """Check and print, and with `upload` upload, the newest artifact of this configuration.

    repository: OWNER/NAME. allow_override: take one that a person shipped against a failed gate. form: of an
    export of the artifact, to be pushed in its place.

    Raises: ConfigError, ArtifactError, GateError, MissingError.
    """
    _check_repository(repository, config.base.licence)
    artifact = newest(artifacts / "models", config)
    if form:
        artifact = exported(artifacts, artifact, form)
    directory, manifest = artifact.directory, artifact.manifest
    passed = list(checks(artifact, allow_override))
    visibility = "private" if private else "public"
    say(f"{manifest['id']} to {repository} ({visibility})")
    sizes = {name: (directory / name).stat().st_size for name in _names(directory)}
    for name, size in sizes.items():
        say(f"  {name:<32} {_kilobytes(size)}")
    say(f"  {f'{len(sizes)} files':<32} {_kilobytes(sum(sizes.values()))}")
    for check in passed:
        say(f"  passed: {check}")
    if "samples.json" in sizes:
        say(f"  note: samples.json shows rows of the test data, {visibility} with the rest")
    if upload:
        say(f"uploaded: {_upload(directory, manifest['id'], repository, private)}")
    else:
        say("nothing was uploaded; the same command with --upload does it")


def checks(artifact: Artifact, allow_override: bool) -> Iterator[str]:
    """Yield each check that a verified artifact passes.

    Raises: GateError or ArtifactError at the first one that it does not pass.
    """
    directory, manifest = artifact.directory, artifact.manifest
    name, evaluation = manifest["id"], manifest["evaluation"]
    override = evaluation.get("override")
    if override and not allow_override:
        raise GateError(f"{name} was shipped by an override ({override}); add --allow-override to push it")
    if not override and evaluation["passed"] is not True:
        raise GateError(f"{name} did not pass its evaluation; see {directory / MANIFEST}")
    yield f"evaluation overridden: {override}" if override else f"{len(evaluation['gates'])} gates"
    if manifest["merge_check"]["passed"] is not True:
        raise GateError(f"{name} did not pass its merge check; see {directory / MANIFEST}")
    yield f"merge check over {manifest['merge_check']['positions']} tokens"
    _check_strays(artifact)
    yield "every file has the SHA-256 of the manifest"
    licence = manifest["base_model"]["licence"]
    _check_licence(directory, licence)
    yield f"what the licence {licence} asks for"


def _check_repository(repository: str, licence: str) -> None:
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(f"--to {repository!r}: {error}") from None
    owner, slash, name = repository.partition("/")
    if not (owner and slash and name):
        raise ConfigError(f"--to {repository!r}: expected OWNER/NAME, such as my-account/my-model")
    if problem := wrong_name(name, licence):
        raise ConfigError(f"--to {repository!r}: {problem}")


def _check_strays(artifact: Artifact) -> None:
    strays = sorted(set(_names(artifact.directory)) - set(artifact.manifest["files"]) - {MANIFEST})
    if strays:
        raise ArtifactError(
            f"{artifact.directory} holds files that the manifest does not name: {', '.join(strays)}"
        )


def _check_licence(directory: Path, licence: str) -> None:
    terms = llama_terms(licence)
    if terms is None:
        return
    notice = directory / "NOTICE"
    if not notice.is_file() or terms.notice not in notice.read_text(encoding="utf-8"):
        raise ArtifactError(f"{notice} must hold the line that the licence {licence} asks for")
    if not any(directory.glob("LICENSE*")):
        raise ArtifactError(
            f"{directory} has no copy of the licence {licence}, which must go with the weights; put "
            "LICENSE.txt into the base model's directory and make the artifact again"
        )


def _upload(directory: Path, identifier: str, repository: str, private: bool) -> str:
    """Make the repository if there is none, upload in one commit, and return its address."""
    if not get_token():
        raise MissingError("no token to upload with: set HF_TOKEN to one that may write to the repository")
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise ConfigError(f"{repository} exists and is public, but --private was given; not uploaded")
        api.upload_folder(
            repo_id=repository,
            folder_path=directory,
            commit_message=f"Upload {identifier}",
            delete_patterns=REPLACED,
        )
    except TrainerError:
        raise
    except Exception as error:  # the hub's, the network's and the storage's errors share no base
        reason = " ".join(str(error).split())
        raise ArtifactError(f"upload to {repository} failed ({type(error).__name__}): {reason}") from None
    return str(address)


def _names(directory: Path) -> list[str]:
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())


def _kilobytes(size: int) -> str:
    return f"{size / 1e3:>13,.1f} kB"
