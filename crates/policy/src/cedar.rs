//! Our vocabulary in Cedar: the schema, the text of a policy, and what its errors point at.

use std::sync::LazyLock;

use cedar_policy::{Expression, Policy, PolicyId, PolicySet, Schema, ValidationMode, Validator};
use model::slice::Effect;
use serde_json::Value;

/// What a policy can see. Every expression is checked against it, strictly.
pub const SCHEMA: &str = r#"
entity Workload;
entity Caller in [Workload] = { "namespace": String, "trust_domain": String } tags String;
entity Destination = { "sensitivity": String };
type Seen = {
  "now": datetime,
  "request": { "method": String, "host": String, "port": Long, "path": String },
  "attestation": { "age": duration, "issued_at": datetime, "provider": String, "kind": String },
  "rules": Set<String>,
  "conditions": Set<String>,
};
action "http", "grpc", "connect" appliesTo { principal: [Caller], resource: [Destination], context: Seen };
"#;

/// The same for people: what an expression can see, its type, and what it is.
pub const REFERENCE: [(&str, &str, &str); 14] = [
    ("principal", "Caller", "who calls; `principal in Workload::\"payments/billing\"`"),
    ("principal.namespace", "String", "the tenant in which the caller was attested"),
    ("principal.trust_domain", "String", "of its SPIFFE ID"),
    ("principal.hasTag(\"…\")", "Bool", "whether the evidence proved this attribute; ask before `getTag`"),
    ("principal.getTag(\"…\")", "String", "an attested attribute, `kubernetes.serviceaccount` for example"),
    ("resource.sensitivity", "String", "the destination's `sensitivity`; empty if it has none"),
    ("context.now", "datetime", "the moment of the decision, UTC"),
    ("context.attestation.age", "duration", "since the evidence was issued"),
    ("context.attestation.issued_at", "datetime", "when the evidence was issued"),
    ("context.attestation.provider", "String", "the TrustProvider that was believed"),
    ("context.attestation.kind", "String", "`kubernetes` or `oidc`"),
    ("context.request.method", "String", "HTTP method; empty for a bare connection"),
    ("context.request.host", "String", "the judged host name"),
    (
        "context.request.path",
        "String",
        "path without query, as it is sent; what it could be read as, only `deny.paths` forbids",
    ),
];

static PARSED: LazyLock<Schema> = LazyLock::new(|| {
    let (schema, _) = Schema::from_cedarschema_str(SCHEMA).expect("a constant that a test parses");
    schema
});

/// The schema, parsed once.
#[must_use]
pub fn schema() -> &'static Schema {
    &PARSED
}

/// An expression that can't be used: what is wrong, and where in its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadExpression {
    /// The sentence.
    pub message: String,
    /// Byte offset in the expression.
    pub offset: usize,
    /// In bytes.
    pub length: usize,
    /// What was probably meant; may be empty.
    pub help: String,
}

/// The parts of a policy that come from a document.
pub struct Source<'a> {
    /// Its id: the document's name.
    pub id: &'a str,
    /// Whether it allows or forbids.
    pub effect: Effect,
    /// For an access policy: the workload and the destination.
    pub scope: Option<(&'a str, &'a str)>,
    /// How many rules it has; 0 restricts nothing.
    pub rules: usize,
    /// Names of conditions that must hold.
    pub conditions: &'a [String],
    /// The document's own expression.
    pub when: Option<&'a str>,
    /// What people read when a guardrail strikes.
    pub reason: Option<&'a str>,
}

/// The id under which a rule is handed to Cedar when it matches.
#[must_use]
pub fn rule_id(policy: &str, index: usize) -> String {
    format!("{policy}#{index}")
}

/// A policy that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Its text.
    pub text: String,
    /// What it looks at.
    pub sees: Sees,
}

/// Makes the Cedar policy and checks it.
///
/// # Errors
/// All that is wrong, by its place in the document's expression: it does not parse, or names what a policy can't see.
pub fn compile(source: &Source<'_>) -> Result<Checked, Vec<BadExpression>> {
    if let Some(when) = source.when {
        // Alone first: what is not one expression must not become more than one by being put between braces.
        when.parse::<Expression>().map_err(|errors| all_located(errors.iter(), when, 0))?;
    }
    let when = source.when.unwrap_or_default();
    let (text, offset) = render(source);
    let policy = Policy::parse(Some(PolicyId::new(source.id)), &text)
        .map_err(|errors| all_located(errors.iter(), when, offset))?;
    let sees = Sees::of(&policy);
    let mut set = PolicySet::new();
    set.add(policy).map_err(|error| {
        vec![BadExpression { message: error.to_string(), offset: 0, length: 1, help: String::new() }]
    })?;
    let result = Validator::new(schema().clone()).validate(&set, ValidationMode::Strict);
    // The checker's errors first: they say where in the expression.
    let wrong = all_located(result.validation_errors(), when, offset);
    if !wrong.is_empty() {
        return Err(wrong);
    }
    let sees = sees.map_err(|unknown| vec![unseen(&unknown, when)])?;
    Ok(Checked { text, sees })
}

/// Cedar finds each error once for every action, in no order; one place is shown once.
fn all_located<'a, E: miette::Diagnostic + 'a>(
    errors: impl Iterator<Item = &'a E>,
    when: &str,
    offset: usize,
) -> Vec<BadExpression> {
    let mut all: Vec<_> = errors.map(|error| located(error, when, offset)).collect();
    all.sort_by(|a, b| (a.offset, &a.message).cmp(&(b.offset, &b.message)));
    all.dedup_by_key(|error| error.offset);
    all
}

/// The policy's text, and the offset at which the document's expression stands in it.
fn render(source: &Source<'_>) -> (String, usize) {
    let mut text = String::new();
    if let Some(reason) = source.reason {
        text.push_str(&format!("@reason({})\n", quote(reason)));
    }
    let effect = match source.effect {
        Effect::Permit => "permit",
        Effect::Forbid => "forbid",
    };
    match source.scope {
        Some((workload, destination)) => text.push_str(&format!(
            "{effect} (principal in Workload::{}, action, resource == Destination::{})",
            quote(workload),
            quote(destination)
        )),
        None => text.push_str(&format!("{effect} (principal, action, resource)")),
    }
    if source.rules > 0 {
        let ids: Vec<String> = (0..source.rules).map(|index| quote(&rule_id(source.id, index))).collect();
        text.push_str(&format!("\nwhen {{ context.rules.containsAny([{}]) }}", ids.join(", ")));
    }
    if !source.conditions.is_empty() {
        let names: Vec<String> = source.conditions.iter().map(|name| quote(name)).collect();
        text.push_str(&format!("\nwhen {{ context.conditions.containsAll([{}]) }}", names.join(", ")));
    }
    let mut offset = 0;
    if let Some(when) = source.when {
        text.push_str("\nwhen {\n");
        offset = text.len();
        // The newline ends a comment that the expression may end with.
        text.push_str(when);
        text.push_str("\n}");
    }
    text.push(';');
    (text, offset)
}

/// A text as Cedar writes it.
fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn located(error: &dyn miette::Diagnostic, expression: &str, offset: usize) -> BadExpression {
    let label = error.labels().and_then(|mut labels| labels.next());
    let (at, length) = label.map_or((offset, expression.len()), |label| (label.offset(), label.len()));
    let at = at.saturating_sub(offset).min(expression.len());
    let length = length.min(expression.len() - at).max(1);
    let message = error.to_string();
    // Cedar names the policy, which is our text: people know the document.
    let message = match message.split_once("`, ") {
        Some((policy, rest)) if policy.starts_with("for policy `") => rest.to_owned(),
        _ => message,
    };
    let message = ["http", "grpc", "connect"]
        .iter()
        .fold(message, |message, action| message.replace(&format!(" for Action::\"{action}\""), ""));
    let help = error.help().map(|help| help.to_string()).unwrap_or_default();
    named(&BadExpression { message, offset: at, length, help }, expression)
}

/// An attribute that is not there, by its own name and place: Cedar points at the whole access.
fn named(bad: &BadExpression, expression: &str) -> BadExpression {
    let found =
        bad.message.strip_prefix("attribute `").and_then(|rest| rest.strip_suffix("` in context not found"));
    let place = found.and_then(|path| {
        let name = path.rsplit('.').next()?;
        let within = expression.get(bad.offset..bad.offset + bad.length)?.rfind(name)?;
        Some((
            format!("`{name}` is not something that an expression can see"),
            bad.offset + within,
            name.len(),
        ))
    });
    match place {
        Some((message, offset, length)) => BadExpression { message, offset, length, help: bad.help.clone() },
        None => bad.clone(),
    }
}

fn unseen(unknown: &Unknown, when: &str) -> BadExpression {
    let near = model::text::nearest(&unknown.0, REFERENCE.iter().map(|(name, ..)| *name));
    BadExpression {
        message: unknown.to_string(),
        // Where in the expression is not told; a search for the name might find it in a string.
        offset: 0,
        length: when.len().max(1),
        help: near.map(|near| format!("did you mean `{near}`?")).unwrap_or_default(),
    }
}

/// What a policy looks at, beyond the rules and conditions that are matched beforehand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sees {
    /// The clock: then a decision under it is good for a second at most.
    pub clock: bool,
    /// The request: then a decision is for that request only.
    pub request: bool,
}

/// What a policy asks for and this version can't show it. A policy that asks whether it is there (`has`) type-checks
/// and is never true, so a guardrail that a newer version wrote would be skipped without a word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no `{0}`")]
pub struct Unknown(pub String);

impl Sees {
    /// Reads it off the parsed policy, never off its text: an attribute's name can be written with escapes.
    ///
    /// # Errors
    /// [`Unknown`].
    pub fn of(policy: &Policy) -> Result<Self, Unknown> {
        // A policy that can't be shown can't be judged either.
        let policy = policy.to_json().map_err(|error| Unknown(error.to_string()))?;
        let mut sees = Self::default();
        for condition in policy["conditions"].as_array().into_iter().flatten() {
            sees.expression(&condition["body"])?;
        }
        Ok(sees)
    }

    /// An expression of Cedar's JSON policy format: an object with the operator as its one key.
    fn expression(&mut self, expression: &Value) -> Result<(), Unknown> {
        if let Some((variable, attributes)) = access(expression) {
            return self.access(variable, &attributes);
        }
        let Some((operator, operands)) = expression.as_object().and_then(|object| object.iter().next())
        else {
            return Ok(());
        };
        match operator.as_str() {
            "Value" => Ok(()),
            "has" => Err(Unknown("has` of a computed value, only of a variable such as `context".to_owned())),
            // The keys of a record are the author's; those of an operator name its operands.
            _ => match operands {
                Value::Array(operands) => operands.iter().try_for_each(|operand| self.expression(operand)),
                Value::Object(operands) => operands.values().try_for_each(|operand| self.operand(operand)),
                _ => Ok(()),
            },
        }
    }

    fn operand(&mut self, operand: &Value) -> Result<(), Unknown> {
        match operand {
            Value::Array(items) => items.iter().try_for_each(|item| self.expression(item)),
            other => self.expression(other),
        }
    }

    fn access(&mut self, variable: &str, attributes: &[&str]) -> Result<(), Unknown> {
        match (variable, attributes) {
            ("context", []) => (self.clock, self.request) = (true, true),
            ("context", ["now"] | ["attestation"] | ["attestation", "age"]) => self.clock = true,
            ("context", ["request"] | ["request", "method" | "host" | "port" | "path"]) => {
                self.request = true
            }
            ("context", ["attestation", "issued_at" | "provider" | "kind"] | ["rules" | "conditions"])
            | ("principal", [] | ["namespace" | "trust_domain"])
            | ("resource", [] | ["sensitivity"])
            | ("action", []) => {}
            _ => {
                let path: Vec<&str> = std::iter::once(variable).chain(attributes.iter().copied()).collect();
                return Err(Unknown(path.join(".")));
            }
        }
        Ok(())
    }
}

/// `context.a.b`, or the question whether it is there, as its variable and attributes; `None` for anything else.
fn access(expression: &Value) -> Option<(&str, Vec<&str>)> {
    let object = expression.as_object()?;
    if let Some(variable) = object.get("Var") {
        return Some((variable.as_str()?, Vec::new()));
    }
    let access = object.get(".").or_else(|| object.get("has"))?;
    let (variable, mut attributes) = self::access(access.get("left")?)?;
    attributes.push(access.get("attr")?.as_str()?);
    Some((variable, attributes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(when: &str) -> Result<Checked, Vec<BadExpression>> {
        compile(&Source {
            id: "payments/p",
            effect: Effect::Permit,
            scope: Some(("payments/billing", "payments/api")),
            rules: 2,
            conditions: &["payments/hours".to_owned()],
            when: Some(when),
            reason: None,
        })
    }

    #[test]
    fn good_expressions() {
        for when in [
            "context.attestation.age < duration(\"1h\")",
            "context.now.toTime() > duration(\"8h\")",
            "principal.hasTag(\"kubernetes.namespace\") && principal.getTag(\"kubernetes.namespace\") == \"a\"",
            "resource.sensitivity != \"high\" // a comment",
            "context.request.method == \"GET\"",
        ] {
            let checked = with(when).unwrap_or_else(|error| panic!("{when}: {error:?}"));
            assert!(checked.text.contains(when));
        }
    }

    #[test]
    fn bad_expressions_point_at_their_fault() {
        let cases = [
            ("context.attestaton.age < duration(\"1h\")", "attestaton"),
            ("context.attestation.age < ", ""),
            ("principal.getTag(\"x\") == \"y\"", "principal.getTag"),
        ];
        for (when, fault) in cases {
            let error = &with(when).unwrap_err()[0];
            assert!(when[error.offset..].contains(fault), "{error:?}");
            assert!(!error.message.contains("payments/p"), "{error:?}");
        }
        let both = with("context.attestaton.age < duration(\"1h\") && context.request.methd == \"GET\"");
        assert_eq!(both.unwrap_err().len(), 2, "all of them at once");
    }

    #[test]
    fn what_an_expression_sees_does_not_depend_on_how_it_is_written() {
        let seen = |when: &str| {
            let sees = with(when).unwrap_or_else(|error| panic!("{when}: {error:?}")).sees;
            (sees.clock, sees.request)
        };
        let moment = "datetime(\"2026-11-24\")";
        for clock in [
            format!("context.now < {moment}"),
            format!("context[\"\\u{{6e}}ow\"] < {moment}"),
            "context.attestation[\"\\u{61}ge\"] < duration(\"1h\")".to_owned(),
            "context.attestation == context.attestation".to_owned(),
            format!("{{ \"Var\": context.now }}.Var < {moment}"),
        ] {
            assert_eq!(seen(&clock), (true, false), "{clock}");
        }
        assert_eq!(seen("context[\"r\\u{65}quest\"].method == \"GET\""), (false, true));
        assert_eq!(seen("[context.request.path].contains(\"/a\")"), (false, true));
        let hidden = format!("(if principal.hasTag(\"a\") then context else context).now < {moment}");
        assert_eq!(seen(&hidden), (true, true));
        for neither in [
            "resource.sensitivity == \"now, of that age, by request\"",
            "context.attestation.provider == \"ci\" && principal in Workload::\"a/b\"",
            "principal.hasTag(\"age\") && principal.getTag(\"age\") like \"1*\"",
        ] {
            assert_eq!(seen(neither), (false, false), "{neither}");
        }
    }

    #[test]
    fn what_is_not_there_can_not_be_asked_for() {
        for (when, name) in [
            ("context has subject && context.subject == \"a\"", "context.subject"),
            ("context.request has header", "context.request.header"),
            ("principal has age", "principal.age"),
        ] {
            let error = &with(when).unwrap_err()[0];
            assert_eq!(error.message, format!("there is no `{name}`"), "{when}");
        }
        let computed = "(if principal.hasTag(\"a\") then context else context) has subject";
        assert!(with(computed).is_err());
    }

    #[test]
    fn an_expression_can_not_become_a_second_policy() {
        let escape = "true }; permit(principal, action, resource) when { true";
        assert!(with(escape).is_err());
        assert!(with("true) || (true").is_err());
    }
}
