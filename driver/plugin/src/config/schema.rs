//! How does a table of keys become Nomad's schema, and a person's?

use std::collections::HashMap;
use std::fmt::Write;

use nomad_proto::hclspec::spec::Block as Node;
use nomad_proto::hclspec::{Attr, BlockList, Default, Literal, Object, Spec};

use super::{Key, Kind};

fn spec(block: Node) -> Spec {
    Spec { block: Some(block) }
}

/// The schema of a block with these keys.
pub(super) fn object(keys: &[Key]) -> Spec {
    let attributes: HashMap<String, Spec> = keys.iter().map(|key| (key.name.to_owned(), node(key))).collect();
    spec(Node::Object(Object { attributes }))
}

fn node(key: &Key) -> Spec {
    let attribute = |kind: &str| {
        spec(Node::Attr(Attr {
            name: key.name.to_owned(),
            r#type: kind.to_owned(),
            required: key.required,
        }))
    };
    let primary = match &key.kind {
        Kind::String => attribute("string"),
        Kind::Bool => attribute("bool"),
        Kind::Number => attribute("number"),
        Kind::StringList => attribute("list(string)"),
        Kind::NumberMap => attribute("map(number)"),
        Kind::Blocks(keys) => {
            return spec(Node::BlockList(Box::new(BlockList {
                name: key.name.to_owned(),
                min_items: 0,
                max_items: 0,
                nested: Some(Box::new(object(keys))),
            })));
        }
    };
    // Collections have their default in the decoder: a literal `{}` has another type than `map(number)`.
    if key.default.is_empty() || matches!(key.kind, Kind::StringList | Kind::NumberMap) {
        return primary;
    }
    let literal = spec(Node::Literal(Literal {
        value: key.default.to_owned(),
    }));
    spec(Node::Default(Box::new(Default {
        primary: Some(Box::new(primary)),
        default: Some(Box::new(literal)),
    })))
}

/// A Markdown table of the keys, blocks after the keys of their parent.
pub(super) fn table(path: &str, keys: &[Key], text: &mut String) {
    // Writing to a String can't fail.
    if path.is_empty() {
        text.push_str("| key | type | default | meaning | example |\n|---|---|---|---|---|\n");
    }
    for key in keys {
        let kind = match key.kind {
            Kind::String => "string",
            Kind::Bool => "bool",
            Kind::Number => "number",
            Kind::StringList => "list(string)",
            Kind::NumberMap => "map(number)",
            Kind::Blocks(_) => "block, may be repeated",
        };
        let default = match (key.required, key.default) {
            (true, _) => "required".to_owned(),
            (false, "") => String::new(),
            (false, default) => format!("`{default}`"),
        };
        let _ = writeln!(
            text,
            "| `{path}{}` | {kind} | {default} | {} | `{}` |",
            key.name, key.meaning, key.example
        );
        if let Kind::Blocks(nested) = &key.kind {
            table(&format!("{path}{}.", key.name), nested, text);
        }
    }
}
