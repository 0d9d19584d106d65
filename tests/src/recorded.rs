//! What releases have said to each other (`golden/wire`), read and changed by the definitions that they had themselves:
//! the messages of today never come into it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, ReflectMessage as _};

pub use prost_reflect::Value;

use crate::grpc::Fields;

/// The definition of the API, as a release had it.
const PROTO: &str = "control_plane.proto";

/// A release, and what it has said.
pub struct Release {
    /// `0.1.0`.
    pub version: String,
    directory: PathBuf,
    pool: DescriptorPool,
}

/// One call: who said what, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// `/countersign.v1.ControlPlane/Attest`.
    pub path: String,
    /// Of the request.
    pub headers: Fields,
    /// Messages of the proxy.
    pub requests: Vec<Bytes>,
    /// Messages of the control plane.
    pub answers: Vec<Bytes>,
    /// How it ended; empty if it was open when the recording ended.
    pub end: Fields,
}

/// A message by the definition of its release.
#[derive(Clone, Debug)]
pub struct Message(DynamicMessage);

impl Release {
    /// All that are kept.
    ///
    /// # Errors
    /// If one can't be read.
    pub fn all() -> anyhow::Result<Vec<Self>> {
        let mut releases = Vec::new();
        for entry in std::fs::read_dir(directory())? {
            let path = entry?.path();
            if path.is_dir() {
                releases.push(Self::read(path)?);
            }
        }
        ensure!(!releases.is_empty(), "{} has no release", directory().display());
        Ok(releases)
    }

    /// The release that is being made, with the definition of today and nothing said yet.
    ///
    /// # Errors
    /// If its folder can't be written.
    pub fn begin(version: &str, proto: &Path) -> anyhow::Result<Self> {
        let directory = directory().join(version);
        if directory.exists() {
            std::fs::remove_dir_all(&directory)?;
        }
        std::fs::create_dir_all(&directory)?;
        std::fs::copy(proto, directory.join(PROTO)).with_context(|| proto.display().to_string())?;
        Self::read(directory)
    }

    fn read(directory: PathBuf) -> anyhow::Result<Self> {
        let version = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { pool: definition(&directory.join(PROTO))?, version, directory })
    }

    /// What the release defined.
    #[must_use]
    pub fn pool(&self) -> &DescriptorPool {
        &self.pool
    }

    /// The documents under which it was said.
    #[must_use]
    pub fn documents() -> PathBuf {
        directory().join("documents.yaml")
    }

    /// What was said under this name.
    ///
    /// # Errors
    /// If it is not there as a whole.
    pub fn conversation(&self, name: &str) -> anyhow::Result<Conversation> {
        let text = std::fs::read_to_string(self.file(name, "head.txt")).with_context(|| name.to_owned())?;
        let mut parts = text.split("\n\n");
        let mut lines = parts.next().unwrap_or_default().lines();
        let path = lines.next().context("no path")?.to_owned();
        let fields = |lines: std::str::Lines<'_>| -> Fields {
            let field = |line: &str| line.split_once(": ").map(|(name, value)| (name.into(), value.into()));
            lines.filter_map(field).collect()
        };
        let (headers, end) = (fields(lines), fields(parts.next().unwrap_or_default().lines()));
        let messages = |who: &str| {
            (1..)
                .map_while(|number| std::fs::read(self.file(name, &format!("{who}-{number}.bin"))).ok())
                .map(Bytes::from)
                .collect()
        };
        Ok(Conversation { path, headers, requests: messages("request"), answers: messages("answer"), end })
    }

    /// Keeps what was said, each message with its text beside it.
    ///
    /// # Errors
    /// If a message is none, or a file can't be written.
    pub fn keep(&self, name: &str, said: &Conversation) -> anyhow::Result<()> {
        let lines = |fields: &Fields| -> String {
            fields.iter().map(|(name, value)| format!("{name}: {value}\n")).collect()
        };
        let head = format!("{}\n{}\n{}", said.path, lines(&said.headers), lines(&said.end));
        std::fs::write(self.file(name, "head.txt"), head)?;
        for (who, messages) in [("request", &said.requests), ("answer", &said.answers)] {
            for (number, bytes) in (1..).zip(messages) {
                let message = self.message(&said.path, who, bytes)?;
                std::fs::write(self.file(name, &format!("{who}-{number}.bin")), bytes)?;
                std::fs::write(self.file(name, &format!("{who}-{number}.txt")), message.text())?;
            }
        }
        Ok(())
    }

    /// A message of a call as its release reads it. `who` is `request` or `answer`.
    ///
    /// # Errors
    /// If the release knows no such call, or the bytes are no such message.
    pub fn message(&self, path: &str, who: &str, bytes: &[u8]) -> anyhow::Result<Message> {
        let kind = self.kind(path, who)?;
        Ok(Message(DynamicMessage::decode(kind, bytes).with_context(|| format!("{who} of {path}"))?))
    }

    /// A message that travels as the bytes of a field, by its name: `countersign.v1.ShapedRecord`.
    ///
    /// # Errors
    /// If the release knows no such message, or the bytes are none.
    pub fn inner(&self, name: &str, bytes: &[u8]) -> anyhow::Result<Message> {
        let kind = self.pool.get_message_by_name(name).with_context(|| name.to_owned())?;
        Ok(Message(DynamicMessage::decode(kind, bytes).with_context(|| name.to_owned())?))
    }

    fn kind(&self, path: &str, who: &str) -> anyhow::Result<MessageDescriptor> {
        let (service, method) = path.trim_start_matches('/').split_once('/').context("no method")?;
        let service = self.pool.get_service_by_name(service).with_context(|| path.to_owned())?;
        let method = service.methods().find(|known| known.name() == method);
        let method = method.with_context(|| path.to_owned())?;
        Ok(if who == "request" { method.input() } else { method.output() })
    }

    fn file(&self, name: &str, rest: &str) -> PathBuf {
        self.directory.join(format!("{name}.{rest}"))
    }
}

/// What a `.proto` file defines.
///
/// # Errors
/// If it does not compile.
pub fn definition(proto: &Path) -> anyhow::Result<DescriptorPool> {
    let include = proto.parent().context("no folder")?;
    let compiled = protox::compile([proto], [include]).with_context(|| proto.display().to_string())?;
    Ok(DescriptorPool::from_file_descriptor_set(compiled)?)
}

impl Message {
    /// The value of a field, by names with dots between: `session.caller.spiffe_id`.
    ///
    /// # Panics
    /// If the message has no such field set: a recording has what the test asks for.
    #[must_use]
    pub fn get(&self, path: &str) -> Value {
        let mut value = Value::Message(self.0.clone());
        for name in path.split('.') {
            let message = value.as_message().unwrap_or_else(|| panic!("{path}: {name} is in no message"));
            assert!(message.has_field_by_name(name), "{path}: {name} is not set in\n{}", self.text());
            value = message
                .get_field_by_name(name)
                .map(std::borrow::Cow::into_owned)
                .unwrap_or(Value::Bool(false));
        }
        value
    }

    /// Whether the field of a message is set to anything but its default.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.has_field_by_name(name)
    }

    /// The messages in a field; none if it is not set.
    ///
    /// # Panics
    /// If there is something else in it.
    #[must_use]
    pub fn list_of(&self, name: &str) -> Vec<Self> {
        let list = if self.has(name) { self.get(name) } else { Value::List(Vec::new()) };
        let list = list.as_list().unwrap_or_else(|| panic!("{name} is no list"));
        list.iter().map(|item| Self(item.as_message().expect("a message").clone())).collect()
    }

    /// The text of a field.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn text_of(&self, path: &str) -> String {
        self.get(path).as_str().unwrap_or_else(|| panic!("{path} is no text")).to_owned()
    }

    /// Sets a field; the messages on the way to it are there.
    ///
    /// # Panics
    /// If they are not, or the value is of another type.
    pub fn set(&mut self, path: &str, value: Value) {
        let (way, name) = path.rsplit_once('.').map_or((None, path), |(way, name)| (Some(way), name));
        let mut message = &mut self.0;
        for part in way.into_iter().flat_map(|way| way.split('.')) {
            assert!(message.has_field_by_name(part), "{path}: {part} is not set");
            let field = message.get_field_by_name_mut(part).and_then(Value::as_message_mut);
            message = field.unwrap_or_else(|| panic!("{path}: {part} is no message"));
        }
        message.set_field_by_name(name, value);
    }

    /// As its release writes it.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        prost_reflect::prost::Message::encode_to_vec(&self.0).into()
    }

    /// For people, a field a line; what the release does not know is left out.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        fields_of(&self.0, 0, &mut text);
        text
    }

    /// The name of its kind.
    #[must_use]
    pub fn kind(&self) -> String {
        self.0.descriptor().full_name().to_owned()
    }
}

fn fields_of(message: &DynamicMessage, depth: usize, text: &mut String) {
    let mut fields: Vec<_> = message.fields().collect();
    fields.sort_by_key(|(field, _)| field.number());
    for (field, value) in fields {
        match value {
            Value::List(values) => {
                values.iter().for_each(|value| line_of(field.name(), value, depth, text));
            }
            Value::Map(entries) => {
                let named = |(key, value)| (format!("{}[{key:?}]", field.name()), value);
                let entries: std::collections::BTreeMap<String, &Value> = entries
                    .iter()
                    .map(|(key, value)| (key.as_str().unwrap_or_default(), value))
                    .map(named)
                    .collect();
                entries.iter().for_each(|(name, value)| line_of(name, value, depth, text));
            }
            value => line_of(field.name(), value, depth, text),
        }
    }
}

fn line_of(name: &str, value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    let value = match value {
        Value::Message(message) => {
            text.push_str(&format!("{indent}{name}:\n"));
            return fields_of(message, depth + 1, text);
        }
        Value::String(value) => format!("{value:?}"),
        Value::Bytes(value) => format!("\"{}\"", value.escape_ascii()),
        Value::Bool(value) => value.to_string(),
        Value::U32(value) => value.to_string(),
        Value::U64(value) => value.to_string(),
        Value::I64(value) => value.to_string(),
        other => format!("{other:?}"),
    };
    text.push_str(&format!("{indent}{name}: {value}\n"));
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/wire")
}
