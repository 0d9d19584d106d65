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

/// Where a part of a text value (by its byte offset and length there) stands in the file. `None` if that can't be said
/// for sure, and the value's own place must do.
///
/// YAML writes one text in five ways: plain, in either quotes, literal (`|`), folded (`>`). In all of them the characters
/// that can be seen stand in the file in their order; only white space is added, joined or dropped between them, and in
/// double quotes some are written as escapes. So the two are walked side by side, and where they part nothing is claimed.
#[must_use]
pub fn within(source: &str, value: &str, at: Spot, offset: usize, length: usize) -> Option<Spot> {
    let first = value.get(..offset)?.chars().count();
    let last = value.get(..offset + length)?.chars().count().saturating_sub(1).max(first);
    let marks = [None, Some('"'), Some('\'')];
    let places = marks.into_iter().find_map(|quote| Walk::from(source, at, quote)?.along(value))?;
    let (line, column) = *places.get(first)?;
    let (last_line, last_column) = *places.get(last)?;
    let length = match last_line == line {
        true => last_column - column + 1,
        // A part that goes on below is underlined to the end of its first line.
        false => {
            let whole = source.lines().nth(line as usize - 1)?.chars().count();
            u32::try_from(whole).ok()?.checked_sub(column - 1)?
        }
    };
    Some(Spot { line, column, length: length.max(1), offset: at.offset })
}

/// Walks through the source of a scalar.
struct Walk<'a> {
    rest: std::str::Chars<'a>,
    line: u32,
    column: u32,
    quote: Option<char>,
}

impl<'a> Walk<'a> {
    /// Begins at a value, behind its opening quote if it has one.
    fn from(source: &'a str, at: Spot, quote: Option<char>) -> Option<Self> {
        // Line and column 0: the parser could not say where the value stands.
        let (line, column) = (at.line.checked_sub(1)? as usize, at.column.checked_sub(1)? as usize);
        let start: usize = source.split_inclusive('\n').take(line).map(str::len).sum();
        let (into_line, _) = source.get(start..)?.char_indices().nth(column)?;
        let rest = source[start + into_line..].chars();
        let mut walk = Self { rest, line: at.line, column: at.column, quote };
        match quote {
            Some(quote) if walk.peek() == Some(quote) => drop(walk.next()),
            Some(_) => return None,
            None => {}
        }
        Some(walk)
    }

    /// The place of each character of the value, and of what follows it; `None` if this is not how it is written.
    fn along(mut self, value: &str) -> Option<Vec<(u32, u32)>> {
        let mut places = Vec::with_capacity(value.len() + 1);
        for c in value.chars() {
            places.push(self.to(c)?);
        }
        places.push((self.line, self.column));
        Some(places)
    }

    /// Goes past one character of the value; says where it stands.
    fn to(&mut self, c: char) -> Option<(u32, u32)> {
        loop {
            let place = (self.line, self.column);
            let Some(next) = self.peek() else { return c.is_whitespace().then_some(place) };
            match next {
                '\\' if self.quote == Some('"') => match self.escaped()? {
                    // The line goes on below.
                    '\n' if self.column == 1 => {}
                    escaped => return (escaped == c).then_some(place),
                },
                blank if blank.is_whitespace() && c.is_whitespace() => {
                    self.next();
                    return Some(place);
                }
                blank if blank.is_whitespace() => drop(self.next()),
                // Several line breaks can be more in the value than in the file, and fewer.
                _ if c.is_whitespace() => return Some(place),
                shown if shown == c => {
                    self.next();
                    if shown == '\'' && self.quote == Some('\'') && self.next()? != '\'' {
                        return None;
                    }
                    return Some(place);
                }
                _ => return None,
            }
        }
    }

    /// YAML 1.2 §5.7, from the backslash on.
    fn escaped(&mut self) -> Option<char> {
        self.next();
        let digits = match self.next()? {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            '0' => return Some('\0'),
            'a' => return Some('\x07'),
            'b' => return Some('\x08'),
            't' => return Some('\t'),
            'n' => return Some('\n'),
            'v' => return Some('\x0b'),
            'f' => return Some('\x0c'),
            'r' => return Some('\r'),
            'e' => return Some('\x1b'),
            'N' => return Some('\u{85}'),
            '_' => return Some('\u{a0}'),
            'L' => return Some('\u{2028}'),
            'P' => return Some('\u{2029}'),
            itself => return Some(itself),
        };
        let hex: String = (0..digits).map_while(|_| self.next()).collect();
        char::from_u32(u32::from_str_radix(&hex, 16).ok()?)
    }

    fn peek(&self) -> Option<char> {
        self.rest.clone().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.next()?;
        (self.line, self.column) = if c == '\n' { (self.line + 1, 1) } else { (self.line, self.column + 1) };
        Some(c)
    }
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
    fn a_place_within_a_text_is_exact_however_it_is_written() {
        let find = |yaml: &str, needle: &str| {
            let tree = &read(yaml).unwrap()[0];
            let value = tree.value["w"].as_str().unwrap();
            let place = within(yaml, value, tree.values["/w"], value.find(needle).unwrap(), needle.len());
            place.map(|s| (s.line, s.column, s.length))
        };
        assert_eq!(find("w: a.b < c\n", "b"), Some((1, 6, 1)));
        assert_eq!(find("w: \"a.b < c\"\n", "b"), Some((1, 7, 1)));
        assert_eq!(find("w: 'a.b < c'\n", "b"), Some((1, 7, 1)));
        assert_eq!(find("w: 'it''s b'\n", "s b"), Some((1, 9, 3)));
        assert_eq!(find("w: |\n  a\n  && bee\n", "bee"), Some((3, 6, 3)));
        assert_eq!(find("w: >\n  a\n  && bee\n", "bee"), Some((3, 6, 3)));
        assert_eq!(find("w: >-\n\n  a\n\n\n   && bee\n", "bee"), Some((6, 7, 3)));
        assert_eq!(find("w: a\n  && bee\n", "bee"), Some((2, 6, 3)));
        assert_eq!(find("w: \"a\n  \\\n  && bee\"\n", "bee"), Some((3, 6, 3)));
        // An escape is as long as it is written.
        assert_eq!(find("w: \"a \\u0041b c\"\n", "Ab"), Some((1, 7, 7)));
        assert_eq!(find("w: \"\\\"a\\\" == b\"\n", "b"), Some((1, 14, 1)));
        assert_eq!(find("{ w: \"a.b\" }\n", "b"), Some((1, 9, 1)));
        // To the end of its line, where it goes on below.
        assert_eq!(find("w: |\n  abc\n  && b\n", "bc\n&& b"), Some((2, 4, 2)));
    }

    #[test]
    fn hostile_yaml_is_bounded() {
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
        assert!(read(bomb).is_err());
        assert!(read(&"[".repeat(100_000)).is_err());
    }
}
