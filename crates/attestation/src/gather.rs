//! Gathering evidence, beside the workload.

use std::path::Path;

use model::{Code, Failure, Secret};

/// Largest token that is taken for one.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// Reads the newest token that the platform has put into a file. A newline at its end is not part of it.
///
/// # Errors
/// [`Code::NoCaller`] if there is none, or it can't be one.
pub fn token(path: &Path) -> Result<Secret, Failure> {
    let problem =
        |what: &str| Failure::new(Code::NoCaller, format!("the evidence in {} {what}", path.display()));
    let content = std::fs::read(path).map_err(|error| problem("can't be read").because(error))?;
    let token = Secret::new(content.trim_ascii().to_vec());
    // The file's own copy is as secret as ours.
    drop(zeroize::Zeroizing::new(content));
    if token.is_empty() {
        return Err(problem("is empty"));
    }
    if token.len() > TOKEN_BYTES_MAX {
        return Err(problem("is too long to be a token"));
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_there_now() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        assert!(token(&path).is_err());
        std::fs::write(&path, "a.b.c\n").unwrap();
        assert_eq!(token(&path).unwrap().expose(), b"a.b.c");
        std::fs::write(&path, "\n").unwrap();
        assert!(token(&path).is_err());
    }
}
