//! Values that are more than their type: durations, hosts, path templates, times of day.

use std::collections::BTreeMap;

use ipnet::IpNet;
use model::destination::{ClientCertificate, HttpVersion, Protocol, Resolution, TlsMode};
use model::slice::{ConditionKind, Egress};

use crate::kind::{ConditionSpec, TimeWindowSpec};

/// Reads `30s`, `5m`, `1h`, `2d` as seconds.
#[must_use]
pub fn duration(text: &str) -> Option<u32> {
    let unit = text.chars().last()?;
    let number: u32 = digits(text.strip_suffix(unit)?)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// A number in digits alone: Rust's own reader takes a `+` too.
fn digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// Reads an address or a CIDR block; an address is a block of itself.
#[must_use]
pub fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from))
}

/// `observe` or `enforce`.
#[must_use]
pub fn egress(text: &str) -> Option<Egress> {
    match text {
        "observe" => Some(Egress::Observe),
        "enforce" => Some(Egress::Enforce),
        _ => None,
    }
}

/// `http` or `tcp`.
#[must_use]
pub fn protocol(text: &str) -> Option<Protocol> {
    match text {
        "http" => Some(Protocol::Http),
        "tcp" => Some(Protocol::Tcp),
        _ => None,
    }
}

/// `terminate` or `passthrough`.
#[must_use]
pub fn tls_mode(text: &str) -> Option<TlsMode> {
    match text {
        "terminate" => Some(TlsMode::Terminate),
        "passthrough" => Some(TlsMode::Passthrough),
        _ => None,
    }
}

/// `name` or `application`.
#[must_use]
pub fn resolution(text: &str) -> Option<Resolution> {
    match text {
        "name" => Some(Resolution::Name),
        "application" => Some(Resolution::Application),
        _ => None,
    }
}

/// `svid`.
#[must_use]
pub fn client_certificate(text: &str) -> Option<ClientCertificate> {
    (text == "svid").then_some(ClientCertificate::Svid)
}

/// `h2` or `http/1.1`.
#[must_use]
pub fn http_version(text: &str) -> Option<HttpVersion> {
    match text {
        "h2" => Some(HttpVersion::Http2),
        "http/1.1" => Some(HttpVersion::Http1),
        _ => None,
    }
}

/// Whether a text is a method (RFC 9110 §9.1): a token, by convention upper case.
#[must_use]
pub fn is_method(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 32
        && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'-' || b == b'_')
}

/// Whether a text is a path template: absolute, and `*` and `**` only as whole segments.
#[must_use]
pub fn is_path_template(text: &str) -> bool {
    text.starts_with('/')
        && text.bytes().all(|b| b.is_ascii_graphic() && !b"?#\\%;".contains(&b))
        && text[1..].split('/').enumerate().all(|(i, segment)| {
            let whole = !segment.contains('*') || segment == "*" || segment == "**";
            // An empty segment is only the end of a path that ends in `/`.
            let last = i == text[1..].split('/').count() - 1;
            whole && segment != "." && segment != ".." && (!segment.is_empty() || last)
        })
}

/// Minute of the day of `08:00`; `24:00` is its end.
#[must_use]
pub fn minute_of_day(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    if hours.len() != 2 || minutes.len() != 2 {
        return None;
    }
    let (hours, minutes): (u16, u16) = (digits(hours)?, digits(minutes)?);
    let minute = hours * 60 + minutes;
    (minutes < 60 && minute <= 24 * 60).then_some(minute)
}

/// Day of the week, Monday is 0.
#[must_use]
pub fn day(text: &str) -> Option<u8> {
    let days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
    days.iter().position(|name| *name == text).and_then(|index| u8::try_from(index).ok())
}

/// The condition that a spec describes; `None` if it is not valid, which [`crate::validate`] says with its place.
#[must_use]
pub fn condition(spec: &ConditionSpec) -> Option<ConditionKind> {
    match (&spec.time_window, &spec.attested_within) {
        (Some(window), None) => time_window(window),
        (None, Some(within)) => duration(within).map(|seconds| ConditionKind::AttestedWithin { seconds }),
        _ => None,
    }
}

fn time_window(window: &TimeWindowSpec) -> Option<ConditionKind> {
    let days: Option<Vec<u8>> = window.days.iter().map(|name| day(name)).collect();
    let days =
        days.filter(|days| !days.is_empty()).or_else(|| window.days.is_empty().then(|| (0..7).collect()))?;
    Some(ConditionKind::TimeWindow {
        days,
        from_minute: minute_of_day(&window.from)?,
        to_minute: minute_of_day(&window.to)?,
        time_zone: window.time_zone.clone(),
    })
}

/// Whether all of a selector's attributes are those of a caller. A value that ends in `*` is a prefix.
#[must_use]
pub fn selects(selector: &BTreeMap<String, String>, attributes: &BTreeMap<String, String>) -> bool {
    !selector.is_empty()
        && selector.iter().all(|(key, wanted)| {
            attributes.get(key).is_some_and(|value| match wanted.strip_suffix('*') {
                Some(prefix) => value.starts_with(prefix),
                None => value == wanted,
            })
        })
}

/// The `{attribute}`s of a template, or why it is none.
///
/// # Errors
/// If a brace is not closed, or stands alone.
pub fn template_attributes(template: &str) -> Result<Vec<&str>, &'static str> {
    let mut names = Vec::new();
    let mut rest = template;
    while let Some(open) = rest.find(['{', '}']) {
        if rest.as_bytes()[open] == b'}' {
            return Err("a `}` without its `{`");
        }
        let (name, after) = rest[open + 1..].split_once('}').ok_or("a `{` without its `}`")?;
        if name.is_empty() || name.contains('{') {
            return Err("`{}` must name an attribute");
        }
        names.push(name);
        rest = after;
    }
    Ok(names)
}

/// Puts values into a template's `{attribute}`s. A template that is not whole has been refused by the validation; what
/// follows its last whole attribute then stays as it is.
///
/// # Errors
/// What `value` says of an attribute.
pub fn fill_template<E>(template: &str, value: impl Fn(&str) -> Result<String, E>) -> Result<String, E> {
    let mut filled = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((name, after)) = after.split_once('}') else { break };
        filled.push_str(before);
        filled.push_str(&value(name)?);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        assert_eq!(
            (duration("5m"), duration("1h"), duration("5"), duration("m")),
            (Some(300), Some(3600), None, None)
        );
        assert_eq!(
            (duration("+5m"), duration("5\u{20ac}"), minute_of_day("+8:00"), minute_of_day("8:+0")),
            (None, None, None, None)
        );
        assert_eq!(
            (minute_of_day("08:30"), minute_of_day("24:00"), minute_of_day("24:01"), minute_of_day("8:30")),
            (Some(510), Some(1440), None, None)
        );
        for good in ["/", "/v1/charges/**", "/*/x", "/a/"] {
            assert!(is_path_template(good), "{good}");
        }
        for bad in ["", "v1", "/a*", "/a//b", "/../b", "/a?b", "/%2e"] {
            assert!(!is_path_template(bad), "{bad}");
        }
        assert_eq!(template_attributes("ns/{a}/sa/{b.c}"), Ok(vec!["a", "b.c"]));
        assert!(template_attributes("{a").is_err() && template_attributes("a}").is_err());
    }
}
