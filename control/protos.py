"""Protocol Buffers messages from tables, without generated code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


def message_classes(file_name: str, package: str, syntax: str, table: Mapping[str, str]) -> dict[str, Any]:
    """The classes of the messages in `table`: name -> fields "NAME:TYPE:NUMBER", a `*` after the type for repeated.

    `syntax` is "proto2", whose fields are on the wire when they are set, or "proto3", whose zeros are not.
    """
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name=file_name, package=package, syntax=syntax)
    for name, fields in table.items():
        message = file.message_type.add(name=name)
        for text in fields.split():
            field_name, kind, number = text.split(":")
            made = message.field.add(name=field_name, number=int(number), label=field.LABEL_OPTIONAL)
            if kind.endswith("*"):
                made.label, kind = field.LABEL_REPEATED, kind[:-1]
            if kind in table:
                made.type, made.type_name = field.TYPE_MESSAGE, f".{package}.{kind}"
            else:
                made.type = field.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in table}
