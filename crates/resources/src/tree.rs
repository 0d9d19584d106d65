//! YAML with the place of every value.
//!
//! Documents are read into plain types; where something is wrong with one of their values, its place is looked up here
//! by its path.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{Location, Spanned};

/// A value's path: `/spec/allow/0/methods`, as a JSON pointer (RFC 6901) without escapes.
pub type Path = String;

/// Where a value, and for a field its name, stands in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// 1-based.
    pub line: u32,
    /// 1-based, in characters.
    pub column: u32,
    /// In characters.
    pub length: u32,
    /// Byte offset in the text.
    pub offset: usize,
}

/// One YAML document: its value as JSON, and where each part stands.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// The value.
    pub value: Value,
    /// Places of values.
    pub values: BTreeMap<Path, Spot>,
    /// Places of field names.
    pub keys: BTreeMap<Path, Spot>,
}

/// Reads all documents of a text.
///
/// # Errors
/// What the parser says and where, for the first document that is not YAML. Aliases, depth and size are bounded.
pub fn read(text: &str) -> Result<Vec<Tree>, (String, Option<Spot>)> {
    // YAML 1.1 takes `y`, `yes`, `on` for truth values: nobody who names a namespace `y` means that.
    let options = serde_saphyr::options! { strict_booleans: true };
    let documents: Vec<Spanned<Node>> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| (message(&error), error.location().as_ref().map(spot)))?;
    Ok(documents
        .into_iter()
        .filter(|document| !matches!(document.value, Node::Scalar(Value::Null)))
        .map(|document| {
            let mut tree = Tree::default();
            tree.value = flatten(document, String::new(), &mut tree.values, &mut tree.keys);
            tree
        })
        .collect())
}

/// The parser's sentence, without the place at its end: that is shown apart.
fn message(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    match text.rfind(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

fn spot(location: &Location) -> Spot {
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Spot {
        line: number(location.line()),
        column: number(location.column()),
        length: number(location.span().len()),
        offset: location.span().byte_offset().and_then(|o| usize::try_from(o).ok()).unwrap_or(usize::MAX),
    }
}

enum Node {
    Scalar(Value),
    List(Vec<Spanned<Self>>),
    Map(Vec<(Spanned<String>, Spanned<Self>)>),
}

fn flatten(
    node: Spanned<Node>,
    path: Path,
    values: &mut BTreeMap<Path, Spot>,
    keys: &mut BTreeMap<Path, Spot>,
) -> Value {
    values.insert(path.clone(), spot(&node.referenced));
    match node.value {
        Node::Scalar(value) => value,
        Node::List(items) => items
            .into_iter()
            .enumerate()
            .map(|(index, item)| flatten(item, format!("{path}/{index}"), values, keys))
            .collect(),
        Node::Map(fields) => {
            let mut map = Map::new();
            for (key, value) in fields {
                let path = format!("{path}/{}", key.value);
                let mut at = spot(&key.referenced);
                at.length = u32::try_from(key.value.chars().count()).unwrap_or(u32::MAX);
                keys.insert(path.clone(), at);
                let value = flatten(value, path, values, keys);
                map.insert(key.value, value);
            }
            Value::Object(map)
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Scalar(Value::String(text.to_owned())))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Number(value.into())))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Number(value.into())))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(Number::from_f64(value).map_or(Value::Null, Value::Number)))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        while let Some(field) = fields.next_entry()? {
            map.push(field);
        }
        Ok(Node::Map(map))
    }
}

/// Where a byte offset within a text value stands in the file; `None` if that can't be said for sure (folded or escaped
/// text), and the value's own place must do.
#[must_use]
pub fn within(source: &str, value: &str, at: Spot, offset: usize) -> Option<Spot> {
    let before = value.get(..offset)?;
    let line_index = before.matches('\n').count();
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let in_line = value[line_start..].lines().next().unwrap_or_default();
    let column_in_line = before[line_start..].chars().count();
    // Line and column 0: the parser could not say where the value stands.
    let (line_before, column_before) = (at.line.checked_sub(1)? as usize, at.column.checked_sub(1)? as usize);
    let source_line = source.lines().nth(line_before + line_index)?;
    let quoted = source.get(at.offset..).is_some_and(|rest| rest.starts_with(['"', '\'']));
    let skip = column_before + usize::from(quoted);
    let shown: String = source_line.chars().skip(skip).take(in_line.chars().count()).collect();
    if shown != in_line || (quoted && line_index > 0) {
        return None;
    }
    let column = u32::try_from(skip + column_in_line + 1).ok()?;
    let line = at.line + u32::try_from(line_index).ok()?;
    Some(Spot { line, column, length: 1, offset: at.offset })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_its_place() {
        let tree = &read("a: 5m\nm: { ns: y, l: [1] }\n---\n").unwrap()[0];
        assert_eq!(tree.value, serde_json::json!({ "a": "5m", "m": { "ns": "y", "l": [1] } }));
        let at = |path: &str| (tree.values[path].line, tree.values[path].column);
        assert_eq!((at("/a"), at("/m/ns"), at("/m/l/0")), ((1, 4), (2, 10), (2, 17)));
        assert_eq!(tree.keys["/m/l"].column, 13);
    }

    #[test]
    fn a_place_within_a_text_is_exact_or_not_given() {
        let find = |yaml: &str, needle: &str| {
            let tree = &read(yaml).unwrap()[0];
            let value = tree.value["w"].as_str().unwrap();
            within(yaml, value, tree.values["/w"], value.find(needle).unwrap()).map(|s| (s.line, s.column))
        };
        assert_eq!(find("w: a.b < c\n", "b"), Some((1, 6)));
        assert_eq!(find("w: \"a.b < c\"\n", "b"), Some((1, 7)));
        assert_eq!(find("w: 'a.b < c'\n", "b"), Some((1, 7)));
        assert_eq!(find("w: |\n  a\n  && b\n", "b"), Some((3, 6)));
        assert_eq!(find("w: >\n  a\n  && b\n", "b"), None);
        assert_eq!(find("w: \"a \\u0041 b\"\n", "b"), None);
        assert_eq!(find("{ w: \"a.b\" }\n", "b"), Some((1, 9)));
    }

    #[test]
    fn hostile_yaml_is_bounded() {
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
        assert!(read(bomb).is_err());
        assert!(read(&"[".repeat(100_000)).is_err());
    }
}
