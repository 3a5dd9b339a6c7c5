//! Which messages, enums and services do our .proto files declare, as rows that a test can compare?
//!
//! Prints one JSON object with sorted keys: `messages`, `enums` and `services` map each full name to its rows, shaped as
//! `columns` says; `extras` is the crate's table of what the compared module lacks. The package `plugin` comes from the
//! crate `go-plugin`, read as .proto files so that neither crate depends on the other. Packages `google.protobuf` are
//! left out: they are not ours. Map entries are folded into the label `map`, synthetic oneofs are not shown, and reserved
//! numbers follow a message's fields.

use std::path::Path;

use protox::prost_reflect::{Cardinality, DescriptorPool, EnumDescriptor, FieldDescriptor, Kind};
use protox::prost_reflect::{MessageDescriptor, MethodDescriptor};
use serde_json::{Map, Value, json};

const NOT_OURS: &str = "google.protobuf";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tables = Tables::default();
    for protos in [
        crate_dir.join("proto"),
        crate_dir.join("../../driver/go-plugin/proto"),
    ] {
        tables.add(&pool(&protos)?);
    }
    let extras: Vec<Value> = nomad_proto::EXTRAS
        .iter()
        .map(|extra| json!({"item": extra.item, "since": extra.since}))
        .collect();
    let out = json!({
        "columns": {
            "messages": [
                "number",
                "name",
                "label: one | optional | repeated | map",
                "type; message and enum types by full name",
                "oneof or null",
                "packed",
            ],
            "enums": ["number", "name"],
            "services": ["method", "request", "response"],
        },
        "messages": tables.messages,
        "enums": tables.enums,
        "services": tables.services,
        "extras": extras,
    });
    serde_json::to_writer_pretty(std::io::stdout().lock(), &out)?;
    Ok(())
}

fn pool(protos: &Path) -> Result<DescriptorPool, Box<dyn std::error::Error>> {
    let mut files = std::fs::read_dir(protos)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    files.sort();
    let mut compiler = protox::Compiler::new([protos])?;
    compiler.open_files(files)?;
    Ok(compiler.descriptor_pool())
}

#[derive(Default)]
struct Tables {
    messages: Map<String, Value>,
    enums: Map<String, Value>,
    services: Map<String, Value>,
}

impl Tables {
    fn add(&mut self, pool: &DescriptorPool) {
        for message in pool.all_messages() {
            if message.package_name() != NOT_OURS && !message.is_map_entry() {
                self.messages
                    .insert(message.full_name().into(), message_rows(&message));
            }
        }
        for declared in pool
            .all_enums()
            .filter(|declared| declared.package_name() != NOT_OURS)
        {
            self.enums
                .insert(declared.full_name().into(), enum_rows(&declared));
        }
        for service in pool
            .services()
            .filter(|service| service.package_name() != NOT_OURS)
        {
            let mut rows: Vec<_> = service.methods().collect();
            rows.sort_by(|a, b| a.name().cmp(b.name()));
            self.services
                .insert(service.full_name().into(), rows.iter().map(method_row).collect());
        }
    }
}

fn message_rows(message: &MessageDescriptor) -> Value {
    let fields = message.fields(); // ordered by number
    let reserved = message
        .reserved_ranges()
        .flatten()
        .map(|number| json!([number, null, "reserved", null, null, false]));
    fields.map(|field| field_row(&field)).chain(reserved).collect()
}

fn field_row(field: &FieldDescriptor) -> Value {
    let synthetic = field.field_descriptor_proto().proto3_optional();
    let label = match field.cardinality() {
        _ if field.is_map() => "map",
        Cardinality::Repeated => "repeated",
        _ if synthetic => "optional",
        _ => "one",
    };
    let oneof = field.containing_oneof().filter(|_| !synthetic);
    json!([
        field.number(),
        field.name(),
        label,
        type_of(field),
        oneof.map(|oneof| oneof.name().to_owned()),
        field.is_packed(),
    ])
}

fn type_of(field: &FieldDescriptor) -> String {
    let kind = field.kind();
    match kind.as_message().filter(|entry| entry.is_map_entry()) {
        Some(entry) => {
            let (key, value) = (entry.map_entry_key_field(), entry.map_entry_value_field());
            format!("{}, {}", kind_name(&key.kind()), kind_name(&value.kind()))
        }
        None => kind_name(&kind),
    }
}

fn kind_name(kind: &Kind) -> String {
    match kind {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(declared) => declared.full_name().to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

fn enum_rows(declared: &EnumDescriptor) -> Value {
    let mut rows: Vec<_> = declared
        .enum_descriptor_proto()
        .value
        .iter()
        .map(|value| (value.number(), value.name()))
        .collect();
    rows.sort_by_key(|(number, _)| *number); // stable: aliases stay in the order of the file
    rows.into_iter()
        .map(|(number, name)| json!([number, name]))
        .collect()
}

fn method_row(method: &MethodDescriptor) -> Value {
    let side = |streams: bool, message: MessageDescriptor| {
        format!("{}{}", if streams { "stream " } else { "" }, message.full_name())
    };
    json!([
        method.name(),
        side(method.is_client_streaming(), method.input()),
        side(method.is_server_streaming(), method.output()),
    ])
}
