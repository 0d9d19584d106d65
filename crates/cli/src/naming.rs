//! How people name things: `KIND NAME`, `KIND/NAME` or `KIND/NAMESPACE/NAME`, the last as `-o name` prints it.

use model::text::nearest;
use resources::kind::Kind;
use wire::v1;

use crate::client::Client;
use crate::exit::{Exit, Refusal};

/// What `get` knows beside documents.
pub const STATES: [&str; 4] = ["blocks", "bypasses", "grants", "callers"];

/// A thing, or all of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// As the control plane knows it: `AccessPolicy`, `grants`.
    pub kind: String,
    /// Empty if none was given.
    pub namespace: String,
    /// Empty if all of the kind are meant.
    pub name: String,
}

impl Named {
    /// Reads what was typed. A namespace in the name goes before `-n`, unless they disagree.
    ///
    /// # Errors
    /// Usage: an unknown kind, with the nearest one; a name given twice.
    pub fn read(kind: &str, name: Option<&str>, namespace: &str) -> Result<Self, Refusal> {
        let usage = |message: String| Err(Refusal::plain(Exit::Usage, message));
        let (kind, rest) = kind.split_once('/').map_or((kind, None), |(kind, rest)| (kind, Some(rest)));
        let kind = known_kind(kind)?;
        let name = match (rest, name) {
            (Some(_), Some(_)) => return usage("name it once: KIND NAME, or KIND/NAME".to_owned()),
            (Some(name), None) | (None, Some(name)) => name,
            (None, None) => "",
        };
        // A caller's path and a grant's id are names as they are.
        let (within, name) = match Kind::parse(&kind).and_then(|_| name.split_once('/')) {
            Some((within, name)) => (within, name),
            None => ("", name),
        };
        if !within.is_empty() && !namespace.is_empty() && within != namespace {
            return usage(format!("`{within}/{name}` is not in namespace {namespace}"));
        }
        let namespace = if within.is_empty() { namespace } else { within };
        Ok(Self { kind, namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// The same for one document, whose namespace must be known.
    ///
    /// # Errors
    /// Usage.
    pub fn document(kind: &str, name: Option<&str>, namespace: &str) -> Result<v1::Reference, Refusal> {
        let Self { kind, namespace, name } = Self::read(kind, name, namespace)?;
        let Some(known) = Kind::parse(&kind) else {
            return Err(Refusal::plain(Exit::Usage, format!("`{kind}` is not a kind of document")));
        };
        if name.is_empty() {
            return Err(Refusal::plain(Exit::Usage, "name one document: KIND NAME, or KIND/NAME"));
        }
        if known.is_namespaced() && namespace.is_empty() {
            let message = format!("a {known} belongs to a namespace: give it with -n");
            return Err(Refusal::plain(Exit::Usage, message));
        }
        let namespace = if known.is_namespaced() { namespace } else { String::new() };
        Ok(v1::Reference { kind, namespace, name })
    }
}

/// A kind as the control plane names it.
fn known_kind(text: &str) -> Result<String, Refusal> {
    if let Some(kind) = Kind::parse(text) {
        return Ok(kind.as_str().to_owned());
    }
    let lower = text.to_ascii_lowercase();
    let singular = |state: &str| {
        let stem = state.strip_suffix("es").filter(|stem| stem.ends_with('s'));
        stem.or(state.strip_suffix('s')).unwrap_or(state).to_owned()
    };
    if let Some(state) = STATES.into_iter().find(|state| *state == lower || singular(state) == lower) {
        return Ok(state.to_owned());
    }
    let all: Vec<String> = kinds();
    let help = match nearest(&lower, all.iter().map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("kinds are {}", all.join(", ")),
    };
    Err(Refusal { help, ..Refusal::plain(Exit::Usage, format!("`{text}` is not a kind")) })
}

/// All kinds that `get` knows, as people type them.
#[must_use]
pub fn kinds() -> Vec<String> {
    Kind::ALL.iter().map(|kind| kind.plural()).chain(STATES.map(str::to_owned)).collect()
}

/// Adds to "there is no such thing" what was probably meant.
pub async fn with_nearest(mut refusal: Refusal, client: &mut Client, named: &v1::Reference) -> Refusal {
    if refusal.code != Some(model::Code::NotFound) {
        return refusal;
    }
    let all = v1::GetRequest { kind: named.kind.clone(), namespace: String::new(), name: String::new() };
    let Ok(answer) = client.get(all).await else { return refusal };
    let items = answer.into_inner().items;
    let references: Vec<v1::Reference> = items.into_iter().filter_map(|item| item.reference).collect();
    let shown = |reference: &v1::Reference| match reference.namespace.as_str() {
        "" => reference.name.clone(),
        namespace => format!("{namespace}/{}", reference.name),
    };
    if let Some(elsewhere) = references.iter().find(|reference| reference.name == named.name) {
        refusal.help = format!("did you mean `{}`?", shown(elsewhere));
    } else if let Some(near) =
        nearest(&named.name, references.iter().map(|reference| reference.name.as_str()))
    {
        let near = references.iter().find(|reference| reference.name == near).map(shown).unwrap_or_default();
        refusal.help = format!("did you mean `{near}`?");
    }
    refusal
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: &str, name: Option<&str>, namespace: &str) -> Option<(String, String, String)> {
        let named = Named::read(kind, name, namespace).ok()?;
        Some((named.kind, named.namespace, named.name))
    }

    #[test]
    fn a_thing_has_three_spellings() {
        let policy = || Some(("AccessPolicy".to_owned(), "a".to_owned(), "p".to_owned()));
        assert_eq!(read("accesspolicies", Some("p"), "a"), policy());
        assert_eq!(read("AccessPolicy/p", None, "a"), policy());
        assert_eq!(read("accesspolicy/a/p", None, ""), policy());
        assert_eq!(read("accesspolicy", Some("a/p"), "a"), policy());
        assert_eq!(read("accesspolicy/a/p", None, "b"), None, "they disagree");
        assert_eq!(read("accesspolicy/p", Some("p"), "a"), None, "named twice");
        assert_eq!(
            read("caller", Some("ns/a/sa/b"), ""),
            Some(("callers".into(), "".into(), "ns/a/sa/b".into()))
        );
    }

    #[test]
    fn a_misspelt_kind_is_told_its_nearest() {
        let refusal = Named::read("wrkloads", None, "").unwrap_err();
        assert_eq!((refusal.exit, refusal.help.as_str()), (Exit::Usage, "did you mean `workloads`?"));
        let far = Named::read("zebra", None, "").unwrap_err();
        assert!(far.help.contains("accesspolicies") && far.help.contains("grants"), "{far:?}");
    }

    #[test]
    fn a_document_needs_its_namespace_unless_it_has_none() {
        assert!(Named::document("workload", Some("w"), "").unwrap_err().message.contains("-n"));
        assert_eq!(Named::document("guardrail", Some("g"), "a").unwrap().namespace, "");
        assert_eq!(Named::document("grants", Some("g"), "").unwrap_err().exit, Exit::Usage);
    }
}
