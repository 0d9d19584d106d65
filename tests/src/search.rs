//! Looks for a credential where none may be: in a process's memory and environment, and in files.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use anyhow::Context as _;

/// Largest piece of memory that is read at a time.
const PIECE: usize = 1 << 20;

/// Where any of the needles is in the memory or the environment of a process.
///
/// # Errors
/// If the process's memory can't be read: not finding anything must mean that everything was looked at.
pub fn process(pid: u32, needles: &[&[u8]]) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let environment = std::fs::read(format!("/proc/{pid}/environ")).context("environment")?;
    if contains(&environment, needles) {
        found.push("environment".to_owned());
    }
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).context("memory map")?;
    let mut memory = std::fs::File::open(format!("/proc/{pid}/mem")).context("memory")?;
    let mut regions = 0;
    for line in maps.lines() {
        let Some((start, end)) = readable(line) else { continue };
        regions += 1;
        if region(&mut memory, start, end, needles) {
            found.push(format!("memory {line}"));
        }
    }
    anyhow::ensure!(regions > 0, "process {pid} has no memory that could be read");
    Ok(found)
}

/// The files below a directory that hold any of the needles.
///
/// # Errors
/// If the directory can't be listed.
pub fn files(directory: &Path, needles: &[&[u8]]) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            found.extend(files(&entry.path(), needles)?);
        } else if kind.is_file() && contains(&std::fs::read(entry.path())?, needles) {
            found.push(entry.path().display().to_string());
        }
    }
    Ok(found)
}

fn readable(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    // The kernel's own pages can't be read this way, and hold nothing of the process's.
    let kernels = line.ends_with("[vvar]") || line.ends_with("[vsyscall]") || line.ends_with("[vvar_vclock]");
    if !words.next()?.starts_with('r') || kernels {
        return None;
    }
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

/// Pieces overlap by the longest needle, so that none is missed at a border.
fn region(memory: &mut std::fs::File, start: u64, end: u64, needles: &[&[u8]]) -> bool {
    let overlap = needles.iter().map(|needle| needle.len()).max().unwrap_or(0);
    let (mut at, mut piece) = (start, Vec::new());
    while at < end {
        let length = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
        let kept = piece.len().min(overlap);
        piece.drain(..piece.len() - kept);
        piece.resize(kept + length, 0);
        if memory.seek(SeekFrom::Start(at)).is_err() || memory.read_exact(&mut piece[kept..]).is_err() {
            return false;
        }
        if contains(&piece, needles) {
            return true;
        }
        at += length as u64;
    }
    false
}

fn contains(bytes: &[u8], needles: &[&[u8]]) -> bool {
    needles.iter().any(|needle| memchr::memmem::find(bytes, needle).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_in_our_own_memory() {
        let needle: Vec<u8> = (0..24).map(|i| b'a' + (i * 7 % 26)).collect();
        let held = needle.clone();
        let found = process(std::process::id(), &[&needle]).unwrap();
        assert!(found.iter().any(|place| place.contains("[heap]") || place.contains("memory")), "{found:?}");
        drop(held);
    }

    #[test]
    fn a_needle_across_two_pieces_is_found() {
        let bytes = b"....needle....";
        assert!(contains(bytes, &[b"other", b"needle"]));
        assert!(!contains(bytes, &[b"noodle"]));
    }
}
