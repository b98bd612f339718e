"""The errors that the command line reports in one line; any other is a defect and shows its traceback.

TrainerError
├── ConfigError      the YAML file or an override
├── DataError        the data set, or what is left of it after cleaning
├── BaseModelError   the base weights or their tokenizer
├── MissingError     what this machine lacks for the profile: a GPU, access, files
├── ArmError         a run that failed or diverged
├── GateError        a model that must not be shipped
└── ArtifactError    the artifact directory
"""


class TrainerError(Exception):
    """State what failed, the value seen, what was expected and what to do next."""


class ConfigError(TrainerError): ...


class DataError(TrainerError): ...


class BaseModelError(TrainerError): ...


class MissingError(TrainerError): ...


class ArmError(TrainerError): ...


class GateError(TrainerError): ...


class ArtifactError(TrainerError): ...
