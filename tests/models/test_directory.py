from transformers import PreTrainedTokenizerFast

from pipeline.models import directory
from pipeline.models.architecture.tiny import CHAT_TEMPLATE, byte_tokenizer
from pipeline.models.directory import copy_side_files


def test_named_chat_templates_go_along_with_a_model(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": CHAT_TEMPLATE, "tool_use": "{{ tools }}" + CHAT_TEMPLATE}
    tokenizer.save_pretrained(tmp_path / "source")
    copy_side_files(tmp_path / "source", tmp_path / "target")
    copy_side_files(tmp_path / "source", tmp_path / "target")  # over what a killed attempt left
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path / "target").chat_template == tokenizer.chat_template


def test_the_folder_of_templates_is_transformers_own():
    from transformers.utils import CHAT_TEMPLATE_DIR

    assert directory.CHAT_TEMPLATES == CHAT_TEMPLATE_DIR
