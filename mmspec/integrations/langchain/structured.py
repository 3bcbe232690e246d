"""Answers of a form, as LangChain asks for them: by a grammar, not by a tool's call."""

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableLambda, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from pydantic import BaseModel

from mmspec.integrations.answer import broken_form


def json_schema(schema: Mapping[str, Any] | type) -> dict[str, Any]:
    """Of a pydantic model, a TypedDict, or a JSON schema."""
    if isinstance(schema, Mapping) and "type" in schema:
        return dict(schema)
    return convert_to_json_schema(schema)


class _Whole(BaseOutputParser[Any]):
    """LangChain's parsers take the beginning of a form for a value of it."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """`partial`: of a stream, whose last chunk says how it ended."""
        (told,) = result
        metadata = told.message.response_metadata if isinstance(told, ChatGeneration) else {}
        if "finish_reason" in metadata:
            why = broken_form(told.text, metadata["finish_reason"])
            if why is not None:
                raise OutputParserException(why, llm_output=told.text)
        return super().parse_result(result, partial=partial)


class _WholeJson(_Whole, JsonOutputParser):
    pass


class _WholeModel(_Whole, PydanticOutputParser[Any]):
    pass


def read_as(
    schema: Mapping[str, Any] | type, llm: Runnable[Any, Any], *, include_raw: bool
) -> Runnable[Any, Any]:
    """What `llm` answers as a value: an instance of a pydantic model, else a dictionary."""
    is_model = isinstance(schema, type) and issubclass(schema, BaseModel)
    parser: Runnable[Any, Any] = _WholeJson()
    if is_model:
        parser = _WholeModel(pydantic_object=schema)
    if not include_raw:
        return llm | parser
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=RunnableLambda(lambda _: None)
    )
    unparsed = RunnablePassthrough.assign(parsed=RunnableLambda(lambda _: None))
    return RunnableMap(raw=llm) | parsed.with_fallbacks([unparsed], exception_key="parsing_error")
