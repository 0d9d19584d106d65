//! Documents: whatever is in a file, it is read or refused with a place, and what was read compiles or says why not.
#![no_main]

use resources::{Parsed, Set, parse, validate};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if text.len() > 20_000 {
        return;
    }
    let Parsed { documents, diagnostics, broken } = parse(&[("f".to_owned(), text.to_owned())], Some("n"));
    for diagnostic in &diagnostics {
        let _ = resources::diagnostic::render(diagnostic, text);
    }
    let mut set = Set::default();
    for document in &documents {
        let again = resources::Document::from_json(&document.to_json().to_string());
        assert!(again.is_ok_and(|again| again.spec == document.spec));
        set.insert(document.clone());
    }
    for (kind, name) in broken {
        set.note_broken(kind, name);
    }
    for diagnostic in policy::expressions(&documents) {
        let _ = resources::diagnostic::render(&diagnostic, text);
    }
    let found = validate(&documents, &set);
    if !found.iter().any(resources::Diagnostic::is_error) {
        let _ = policy::compile(&set);
    }
});
