import pytest

from pipeline.engine.errors import ConfigError
from pipeline.engine.sources.locations import localize
from pipeline.lineage.template_files import template_files_as_sources


def test_a_chat_template_named_by_its_file_is_identified_by_what_the_file_holds(tmp_path):
    first, second = tmp_path / "a.jinja", tmp_path / "b" / "a.jinja"
    second.parent.mkdir()
    for file in (first, second):
        file.write_text("{{ messages }}")

    def localized(template):
        params = {"data": {"template": template, "sources": [{"template": "{text}"}]}}
        return localize(template_files_as_sources(params), tmp_path / "cache")

    params, locations = localized(str(first))
    assert params == localized(str(second))[0] == localized({"kind": "local", "path": str(first)})[0]
    (content,) = locations
    assert params["data"]["template"] == {"kind": "local", "content": content}
    assert params["data"]["sources"] == [{"template": "{text}"}]
    first.write_text("{{ messages[0] }}")
    assert localized(str(first))[0] != params
    source = "{{ messages }}\n{# from a.jinja #}.jinja"
    assert localized(source)[0]["data"]["template"] == source
    with pytest.raises(ConfigError, match=r"data\.template\.path: .*none\.jinja does not exist"):
        localized(str(tmp_path / "none.jinja"))
