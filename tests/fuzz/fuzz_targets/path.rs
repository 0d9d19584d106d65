//! Paths and templates: nothing ambiguous matches a narrow template.
#![no_main]

use policy::matching::{is_ambiguous, template_matches};

libfuzzer_sys::fuzz_target!(|input: (&str, &str)| {
    let (template, path) = input;
    if template.len() > 200 || path.len() > 400 || template.matches("**").count() > 4 {
        return;
    }
    let _ = template_matches(template, path);
    if path.contains("/../") || path.contains('\\') || path.contains("//") {
        assert!(is_ambiguous(path));
    }
});
