//! What Cedar can't say: methods and path templates. One pure function, the same in proxy and control plane.
//!
//! What a rule matches depends on what it does, so that neither way of reading a path fails open. A rule that permits
//! has the path byte for byte as it is sent; one that two readers could take for two things (escapes of `.`, `/`
//! and `\`, empty or dotted segments, parameters) matches no template, except where everything is allowed. A rule that
//! forbids has also what its escapes stand for, in either case, with and without a slash at its end; and a path that two
//! readers could take for two things matches every template whose words are in it, since one of the readers may be the
//! server.

use model::request::{Action, RequestFacts};
use model::slice::{Effect, Rule};

/// Whether a rule of a policy with this effect speaks of this request: if it permits, only of what nobody could take
/// for anything else; if it forbids, of all that somebody could take for what it names. A rule that names methods or
/// paths speaks of no bare connection.
#[must_use]
pub fn rule_matches(effect: Effect, rule: &Rule, request: &RequestFacts) -> bool {
    match request.action {
        Action::Connect => rule.methods.is_empty() && rule.paths.iter().all(|path| is_everything(path)),
        Action::Http | Action::Grpc => {
            method_matches(effect, rule, request) && path_matches(effect, rule, request)
        }
    }
}

/// Whether the rule's methods have the request's: exactly if it permits, in either case if it forbids.
#[must_use]
pub fn method_matches(effect: Effect, rule: &Rule, request: &RequestFacts) -> bool {
    let has = |method: &String| match effect {
        Effect::Permit => *method == request.method,
        Effect::Forbid => method.eq_ignore_ascii_case(&request.method),
    };
    rule.methods.is_empty() || rule.methods.iter().any(has)
}

/// Whether one of the rule's templates has the request's path, as it is sent if it permits, as it could be read if it
/// forbids.
#[must_use]
pub fn path_matches(effect: Effect, rule: &Rule, request: &RequestFacts) -> bool {
    if rule.paths.is_empty() || rule.paths.iter().any(|template| is_everything(template)) {
        return true;
    }
    let (mut templates, path) = (rule.paths.iter(), request.path.as_str());
    match effect {
        Effect::Permit => templates.any(|template| template_matches(template, path)) && !is_ambiguous(path),
        Effect::Forbid => {
            let could_be_another = is_ambiguous(path) || is_cut_by_some(path);
            is_opaque(path)
                || templates.any(|template| {
                    could_match(template, path) || (could_be_another && has_words(template, path))
                })
        }
    }
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
        [] => path.starts_with('/') && segments_match(Some(template), None, segment_fits),
        [b'/', ..] => {
            path.starts_with('/') && segments_match(Some(template), Some(&path[at + 1..]), segment_fits)
        }
        _ => false,
    }
}

/// Whether some server takes the path for one that matches a template: its escapes undone, in either case, and with or
/// without a slash at its end. An escape that stands for a slash divides nothing here: such a path is ambiguous.
fn could_match(template: &str, path: &str) -> bool {
    let (Some(template), Some(path)) = (template.strip_prefix('/'), path.strip_prefix('/')) else {
        return false;
    };
    let without = |text: &str| text.len() - usize::from(text.ends_with('/'));
    segments_match(Some(template), Some(path), could_fit)
        || segments_match(Some(&template[..without(template)]), Some(&path[..without(path)]), could_fit)
}

/// Matches segment by segment; `None` is nothing left at all. Where a segment does not fit, only the last `**` takes one
/// more: an earlier one could do no better. So the cost is at most the product of the two lengths: templates are
/// written by tenants, paths by workloads, and the control plane matches both.
fn segments_match(
    mut template: Option<&str>,
    mut path: Option<&str>,
    fits: impl Fn(&str, &str) -> bool,
) -> bool {
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
            (Some((want, want_rest)), Some((have, have_rest))) if fits(want, have) => {
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

fn could_fit(want: &str, have: &str) -> bool {
    if want == "*" { !have.is_empty() } else { same(want.bytes(), undone(have.bytes())) }
}

/// Whether these are the same in either case.
fn same(mut want: impl Iterator<Item = u8>, mut have: impl Iterator<Item = u8>) -> bool {
    loop {
        match (want.next(), have.next()) {
            (None, None) => return true,
            (Some(want), Some(have)) if want.eq_ignore_ascii_case(&have) => {}
            _ => return false,
        }
    }
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
        let Some(byte) = escape(&rest[position..]) else { return true };
        if byte.is_ascii_control() || matches!(byte, b'.' | b'/' | b'\\' | b'%' | b';') {
            return true;
        }
        rest = &rest[position + 3..];
    }
    false
}

/// Whether nobody can say what somebody could take the path for: it has escapes that are none, or that stand for more
/// escapes than anybody has reason to send; controls, which some leave out; or what is not UTF-8, in which some find dots
/// and slashes (two bytes for one of ASCII).
fn is_opaque(path: &str) -> bool {
    let is_plain = path.bytes().all(|byte| byte.is_ascii_graphic());
    if !path.contains('%') {
        return !is_plain;
    }
    let is_escape = |position: usize| escape(&path.as_bytes()[position..]).is_some();
    !is_plain
        || !path.match_indices('%').all(|(position, _)| is_escape(position))
        || read(path).any(|byte| byte.is_ascii_control())
        || !is_utf8(read(path))
        || undone(read(path)).count() != read(path).count()
}

/// Whether the path ends earlier for who parses it once more: behind a `?` or `#` that an escape stands for.
fn is_cut_by_some(path: &str) -> bool {
    path.contains('%') && read(path).any(|byte| matches!(byte, b'?' | b'#'))
}

/// Whether all words of a template are somewhere in what the path could be read as. Whoever drops, merges or cuts segments
/// leaves what is within each as it was, so that a path without a template's words is for nobody one that it matches.
fn has_words(template: &str, path: &str) -> bool {
    let is_there = |word: &str| {
        let mut rest = read(path);
        loop {
            // What is left may be shorter than the word.
            let mut here = rest.clone();
            if word.bytes().all(|byte| here.next().is_some_and(|there| byte.eq_ignore_ascii_case(&there))) {
                return true;
            }
            if rest.next().is_none() {
                return false;
            }
        }
    };
    let words = template.split('/').filter(|segment| !matches!(*segment, "" | "*" | "**"));
    words.into_iter().all(is_there)
}

/// A path's bytes, its escapes undone three times: one more than by a server behind a proxy that undoes them too.
fn read(path: &str) -> impl Iterator<Item = u8> + Clone {
    undone(undone(undone(path.bytes())))
}

/// Bytes, each escape undone once; a percent sign that begins none stays.
fn undone(mut bytes: impl Iterator<Item = u8> + Clone) -> impl Iterator<Item = u8> + Clone {
    std::iter::from_fn(move || {
        let first = bytes.next()?;
        let mut ahead = bytes.clone();
        if first == b'%'
            && let (Some(high), Some(low)) = (ahead.next(), ahead.next())
            && let Some(byte) = escape(&[b'%', high, low])
        {
            bytes = ahead;
            return Some(byte);
        }
        Some(first)
    })
}

/// The byte that the escape stands for with which a text begins.
fn escape(text: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = text else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
}

fn is_utf8(mut bytes: impl Iterator<Item = u8>) -> bool {
    while let Some(first) = bytes.next() {
        let length = match first {
            0..0x80 => 1,
            0x80..0xe0 => 2,
            0xe0..0xf0 => 3,
            _ => 4,
        };
        let mut character = [first, 0, 0, 0];
        for place in &mut character[1..length] {
            *place = bytes.next().unwrap_or_default();
        }
        // What ended too early has a zero there, which continues no character.
        if std::str::from_utf8(&character[..length]).is_err() {
            return false;
        }
    }
    true
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

    fn rule(methods: &[&str], paths: &[&str]) -> Rule {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Rule { methods: owned(methods), paths: owned(paths), credential: None }
    }

    fn permits(rule: &Rule, request: &RequestFacts) -> bool {
        rule_matches(Effect::Permit, rule, request)
    }

    fn forbids(rule: &Rule, request: &RequestFacts) -> bool {
        rule_matches(Effect::Forbid, rule, request)
    }

    #[test]
    fn what_could_be_read_in_two_ways_matches_only_everything() {
        let (narrow, everything) = (rule(&[], &["/v1/**"]), rule(&[], &["/**"]));
        let elsewhere = rule(&[], &["/admin/**"]);
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
            assert!(!permits(&narrow, &request("GET", path)), "{path}");
            assert!(permits(&everything, &request("GET", path)), "{path}");
            assert!(forbids(&everything, &request("GET", path)), "{path}");
            // Of what is not opaque, where its words are.
            let has = |word: &str| is_opaque(path) || path.contains(word);
            assert_eq!(forbids(&narrow, &request("GET", path)), has("v1"), "{path}");
            assert_eq!(forbids(&elsewhere, &request("GET", path)), has("admin"), "{path}");
        }
        for path in ["/v1/a%20b", "/v1/a+b", "/v1/a:b", "/v1/%C3%A4", "/v1/a/", "/v1/.well-known", "/v1/..."]
        {
            assert!(permits(&narrow, &request("GET", path)), "{path}");
            assert!(forbids(&narrow, &request("GET", path)), "{path}");
            assert!(!forbids(&elsewhere, &request("GET", path)), "{path}");
        }
    }

    #[test]
    fn what_forbids_has_every_spelling_that_servers_take_for_one() {
        let rule = rule(&[], &["/admin/users", "/repos/*/*", "/abc/"]);
        for path in ["/admin/users/", "/Admin/USERS", "/ADMIN/%55sers/", "/repos/o/r/", "/REPOS/o/r", "/abc"]
        {
            assert!(!is_ambiguous(path) && forbids(&rule, &request("GET", path)), "{path}");
        }
        for path in ["/admin", "/repos/o", "/repos/o/r/x", "/abc/b", "/search/%3F", "/C%23"] {
            assert!(!forbids(&rule, &request("GET", path)), "{path}");
        }
    }

    #[test]
    fn what_forbids_does_not_stand_in_the_way_of_what_nobody_takes_for_it() {
        let admin = rule(&[], &["/admin/**", "/*/keys"]);
        for path in
            ["/@scope%2fname", "/group%2Fproject/issues", "/a//b", "/a/../b", "/a;x=1", "*", "/100%25"]
        {
            assert!(is_ambiguous(path) && !forbids(&admin, &request("GET", path)), "{path}");
        }
        for path in [
            "/x%2f..%2fadmin",
            "/%252561dmin/..",
            "/a/../%61dm%69n",
            "/x//keys",
            "/a;/admin",
            "/a\\keys",
            "/%2525252e/a",
        ] {
            assert!(is_ambiguous(path) && forbids(&admin, &request("GET", path)), "{path}");
        }
    }

    #[test]
    fn what_forbids_has_what_escapes_stand_for() {
        let admin = rule(&[], &["/admin/**", "/*/keys"]);
        for path in ["/%61dmin/users", "/%61%64%6D%69%6e", "/admin/%C3%A4", "/a%20b/%6Beys", "/x/%6bey%73"] {
            assert!(!is_ambiguous(path), "{path}");
            assert!(forbids(&admin, &request("GET", path)), "{path}");
        }
        assert!(!permits(&admin, &request("GET", "/%61dmin/users")));
        // A second parse ends the path there; these bytes are one of ASCII to who does not ask for the shortest form.
        for path in [
            "/admin%3Fy",
            "/%61dmin%23",
            "/%c1%a1dmin",
            "/%c0%aex",
            "/%e0%81%a1dmin",
            "/%ff",
            "/%C3",
            "/%C3/%A4",
        ] {
            assert!(!is_ambiguous(path) && forbids(&admin, &request("GET", path)), "{path}");
        }
        for path in
            ["/%61dmins", "/%2Aa/b", "/%E2%82%AC", "/%F0%9F%94%91", "/%C3%A4/%C3%BC", "/administrators"]
        {
            assert!(!forbids(&admin, &request("GET", path)), "{path}");
        }
    }

    #[test]
    fn what_forbids_has_methods_in_either_case() {
        let delete = rule(&["DELETE"], &[]);
        for (method, permitted, forbidden) in
            [("DELETE", true, true), ("delete", false, true), ("Delete", false, true), ("GET", false, false)]
        {
            assert_eq!(permits(&delete, &request(method, "/")), permitted, "{method}");
            assert_eq!(forbids(&delete, &request(method, "/")), forbidden, "{method}");
        }
    }

    #[test]
    fn a_connection_has_neither_method_nor_path() {
        let mut connect = request("", "");
        connect.action = Action::Connect;
        for matches in [permits, forbids] {
            assert!(matches(&rule(&[], &[]), &connect));
            assert!(matches(&rule(&[], &["/**"]), &connect));
            assert!(!matches(&rule(&["GET"], &[]), &connect));
            assert!(!matches(&rule(&[], &["/a"]), &connect));
        }
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
            let escaped = joined(&path).replace('a', "%61");
            for spelt in [escaped.clone(), escaped.to_uppercase(), joined(&path)] {
                prop_assert!(!means(&template, &path) || could_match(&joined(&template), &spelt), "{}", spelt);
            }
            // And no more than that, but for a slash at the end.
            let bare = |parts: &[&'static str]| {
                let ends = parts.len() > 1 && parts.last() == Some(&"");
                parts[..parts.len() - usize::from(ends)].to_vec()
            };
            if could_match(&joined(&template), &escaped) {
                let is_meant = means(&template, &path) || means(&bare(&template), &bare(&path));
                prop_assert!(is_meant, "{} {}", joined(&template), escaped);
            }
        }

        #[test]
        fn utf8_is_what_the_standard_library_takes_for_it(
            bytes in prop::collection::vec(
                prop_oneof![any::<u8>(), prop::sample::select(vec![0xc3, 0xa4, 0xe0, 0x80, 0xf0, 0xf4, 0xed, b'a'])],
                0..8,
            ),
        ) {
            prop_assert_eq!(is_utf8(bytes.iter().copied()), std::str::from_utf8(&bytes).is_ok());
        }

        #[test]
        fn never_panics_and_everything_matches(template in "/[a-z*/]{0,20}", path in ".{0,30}") {
            let _ = template_matches(&template, &path);
            let _ = (is_ambiguous(&path), is_opaque(&path), could_match(&template, &path));
            let slashed = format!("/{path}");
            prop_assert!(template_matches("/**", &slashed));
        }
    }
}
