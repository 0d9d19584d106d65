//! What Cedar can't say: methods and path templates. One pure function, the same in proxy and control plane.
//!
//! A path is judged byte for byte as it is sent. One that two readers could take for two things (escapes of `.`, `/`
//! and `\`, empty or dotted segments, parameters) matches no template, except where everything is allowed.

use model::request::{Action, RequestFacts};
use model::slice::Rule;

/// Whether a rule speaks of this request. A rule that names methods or paths speaks of no bare connection.
#[must_use]
pub fn rule_matches(rule: &Rule, request: &RequestFacts) -> bool {
    match request.action {
        Action::Connect => rule.methods.is_empty() && rule.paths.iter().all(|path| is_everything(path)),
        Action::Http | Action::Grpc => method_matches(rule, request) && path_matches(rule, request),
    }
}

/// Whether the rule's methods have the request's.
#[must_use]
pub fn method_matches(rule: &Rule, request: &RequestFacts) -> bool {
    rule.methods.is_empty() || rule.methods.contains(&request.method)
}

/// Whether one of the rule's templates has the request's path.
#[must_use]
pub fn path_matches(rule: &Rule, request: &RequestFacts) -> bool {
    if rule.paths.is_empty() || rule.paths.iter().any(|template| is_everything(template)) {
        return true;
    }
    rule.paths.iter().any(|template| template_matches(template, &request.path))
        && !is_ambiguous(&request.path)
}

fn is_everything(template: &str) -> bool {
    template == "/**"
}

/// Whether a path matches a template: `*` is one segment, `**` any number of them, also none.
#[must_use]
pub fn template_matches(template: &str, path: &str) -> bool {
    // Most paths are of another template, which one of the first bytes shows.
    let mut at = 0;
    while !template.as_bytes()[at..].starts_with(b"/*") {
        match (template.as_bytes().get(at), path.as_bytes().get(at)) {
            (None, None) => return template.starts_with('/'),
            (Some(want), Some(have)) if want == have => at += 1,
            _ => return false,
        }
    }
    let (template, rest) = (&template[at + 1..], &path.as_bytes()[at..]);
    match rest {
        [] => path.starts_with('/') && segments_match(Some(template), None),
        [b'/', ..] => path.starts_with('/') && segments_match(Some(template), Some(&path[at + 1..])),
        _ => false,
    }
}

/// Matches segment by segment; `None` is nothing left at all. Where a segment does not fit, only the last `**` takes one
/// more: an earlier one could do no better. So the cost is at most the product of the two lengths: templates are
/// written by tenants, paths by workloads, and the control plane matches both.
fn segments_match(mut template: Option<&str>, mut path: Option<&str>) -> bool {
    // What follows the last `**`, and the path from which it is tried next.
    let mut last_stars: Option<(Option<&str>, Option<&str>)> = None;
    loop {
        match (template.map(split), path.map(split)) {
            (None, None) | (Some(("**", None)), _) => return true,
            (Some(("**", rest)), _) => {
                last_stars = Some((rest, path));
                template = rest;
                continue;
            }
            (Some((want, want_rest)), Some((have, have_rest))) if segment_fits(want, have) => {
                (template, path) = (want_rest, have_rest);
                continue;
            }
            _ => {}
        }
        let Some((rest, Some(tried))) = last_stars else { return false };
        let (_, next) = split(tried);
        last_stars = Some((rest, next));
        (template, path) = (rest, next);
    }
}

fn segment_fits(want: &str, have: &str) -> bool {
    if want == "*" { !have.is_empty() } else { want == have }
}

fn split(text: &str) -> (&str, Option<&str>) {
    match text.as_bytes().iter().position(|byte| *byte == b'/') {
        Some(end) => (&text[..end], Some(&text[end + 1..])),
        None => (text, None),
    }
}

/// Whether two readers could take the path for two things.
#[must_use]
pub fn is_ambiguous(path: &str) -> bool {
    let [b'/', rest @ ..] = path.as_bytes() else { return true };
    let mut segments = rest.split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let is_empty = segment.is_empty() && segments.peek().is_some();
        if is_empty || segment == b"." || segment == b".." {
            return true;
        }
    }
    rest.iter().any(|byte| !byte.is_ascii_graphic() || matches!(byte, b'\\' | b';' | b'?' | b'#'))
        || has_ambiguous_escape(rest)
}

/// An escape that is not one, or that stands for a byte which some readers undo before they split the path: a dot, a
/// slash, a backslash, a percent sign, a control.
fn has_ambiguous_escape(path: &[u8]) -> bool {
    let mut rest = path;
    while let Some(position) = rest.iter().position(|byte| *byte == b'%') {
        let Some(&[high, low]) = rest.get(position + 1..position + 3).and_then(|d| d.first_chunk::<2>())
        else {
            return true;
        };
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (Some(high), Some(low)) = (digit(high), digit(low)) else { return true };
        let byte = high * 16 + low;
        if byte < 0x20 || byte == 0x7f || [b'.', b'/', b'\\', b'%', b';'].map(u32::from).contains(&byte) {
            return true;
        }
        rest = &rest[position + 3..];
    }
    false
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use model::HostName;
    use proptest::prelude::*;

    use super::*;

    fn request(method: &str, path: &str) -> RequestFacts {
        RequestFacts {
            action: Action::Http,
            method: method.into(),
            host: HostName::new("a.example").unwrap(),
            port: 443,
            path: path.into(),
            headers: BTreeMap::new(),
        }
    }

    #[test]
    fn templates() {
        let cases = [
            ("/v1/charges/**", "/v1/charges/42", true),
            ("/v1/charges/**", "/v1/charges/42/lines", true),
            ("/v1/charges/**", "/v1/charges", true),
            ("/v1/charges/**", "/v1/charges/", true),
            ("/v1/charges/**", "/v1/chargesx", false),
            ("/v1/charges/**", "/v1/refunds", false),
            ("/v1/*", "/v1/a", true),
            ("/v1/*", "/v1/a/b", false),
            ("/v1/*", "/v1/", false),
            ("/v1/*", "/v1", false),
            ("/**/x", "/x", true),
            ("/**/x", "/a/b/x", true),
            ("/**/x", "/a/b/xy", false),
            ("/a/**/b/**/c", "/a/1/b/2/3/c", true),
            ("/a/**/b/**/c", "/a/1/2/c", false),
            ("/", "/", true),
            ("/", "/a", false),
            ("/a/", "/a", false),
            ("/**", "/anything/at/all", true),
        ];
        for (template, path, expected) in cases {
            assert_eq!(template_matches(template, path), expected, "{template} {path}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_matches_only_everything() {
        let narrow = Rule { methods: vec![], paths: vec!["/v1/**".into()], credential: None };
        let everything = Rule { methods: vec![], paths: vec!["/**".into()], credential: None };
        let ambiguous = [
            "/v1/%2e%2e/admin",
            "/v1/../admin",
            "/v1/./a",
            "/v1//a",
            "/v1/a;x=1",
            "/v1/%2Fa",
            "/v1/%5ca",
            "/v1/a\\b",
            "/v1/%",
            "/v1/%4",
            "/v1/%zz",
            "/v1/%00",
            "/v1/\u{e4}",
            "/v1/%c0%ae%25",
            "/v1/%252e",
            "*",
            "",
        ];
        for path in ambiguous {
            assert!(is_ambiguous(path), "{path}");
            assert!(!rule_matches(&narrow, &request("GET", path)), "{path}");
            assert!(rule_matches(&everything, &request("GET", path)), "{path}");
        }
        for path in ["/v1/a%20b", "/v1/a+b", "/v1/a:b", "/v1/%C3%A4", "/v1/a/", "/v1/.well-known", "/v1/..."]
        {
            assert!(rule_matches(&narrow, &request("GET", path)), "{path}");
        }
    }

    #[test]
    fn a_connection_has_neither_method_nor_path() {
        let mut connect = request("", "");
        connect.action = Action::Connect;
        let rule = |methods: &[&str], paths: &[&str]| Rule {
            methods: methods.iter().map(|m| (*m).to_owned()).collect(),
            paths: paths.iter().map(|p| (*p).to_owned()).collect(),
            credential: None,
        };
        assert!(rule_matches(&rule(&[], &[]), &connect));
        assert!(rule_matches(&rule(&[], &["/**"]), &connect));
        assert!(!rule_matches(&rule(&["GET"], &[]), &connect));
        assert!(!rule_matches(&rule(&[], &["/a"]), &connect));
    }

    /// What templates mean, said as simply as possible and without regard to cost.
    fn means(template: &[&str], path: &[&str]) -> bool {
        match (template, path) {
            ([], path) => path.is_empty(),
            (["**", rest @ ..], path) => (0..=path.len()).any(|taken| means(rest, &path[taken..])),
            ([want, rest @ ..], [have, others @ ..]) => segment_fits(want, have) && means(rest, others),
            (_, []) => false,
        }
    }

    #[test]
    fn many_stars_cost_little() {
        let template = "/**/a".repeat(60) + "/**/b";
        let path = "/a".repeat(4000);
        let start = std::time::Instant::now();
        assert!(!template_matches(&template, &path));
        assert!(template_matches(&template, &(path + "/b")));
        // The naive way would not end within a lifetime; this is far from both.
        assert!(start.elapsed() < std::time::Duration::from_secs(5));
    }

    proptest! {
        #[test]
        fn the_matcher_means_what_templates_mean(
            template in prop::collection::vec(prop::sample::select(vec!["a", "b", "*", "**", ""]), 1..7),
            path in prop::collection::vec(prop::sample::select(vec!["a", "b", ""]), 1..8),
        ) {
            let joined = |parts: &[&str]| format!("/{}", parts.join("/"));
            prop_assert_eq!(template_matches(&joined(&template), &joined(&path)), means(&template, &path));
        }

        #[test]
        fn never_panics_and_everything_matches(template in "/[a-z*/]{0,20}", path in ".{0,30}") {
            let _ = template_matches(&template, &path);
            let _ = is_ambiguous(&path);
            let slashed = format!("/{path}");
            prop_assert!(template_matches("/**", &slashed));
        }
    }
}
