"""Text that trainer and API have in common, because neither imports the other."""

from tests.support import ROOT


def test_trainer_and_api_find_the_forms_of_templates_by_the_same_code() -> None:
    trainers, apis = ("trainer/data/template_form.py", "api/engine/template_form.py")
    assert (ROOT / trainers).read_text() == (ROOT / apis).read_text(), f"cp {trainers} {apis}"
