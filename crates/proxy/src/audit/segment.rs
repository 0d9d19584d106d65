//! One file of the spool: preallocated, mapped, appended to.
//!
//! What has been written to a shared mapping belongs to the kernel: it survives the death of the process at any moment.
//! A power cut can lose what was not synced yet; each record's checksum shows a torn one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::MmapMut;
use model::audit::{Hash, Record, chain};

/// Size of a segment. Small enough that an idle spool costs little, large enough for some thousand calls.
pub const SEGMENT_BYTES: usize = 1 << 20;

const MAGIC: &[u8; 8] = b"CSSPOOL1";

/// Magic, first sequence, hash of the record before it.
const HEADER_BYTES: usize = 8 + 8 + 32;

/// Length and checksum before each payload.
const RECORD_HEADER_BYTES: usize = 8;

/// A segment that is open.
pub struct Segment {
    path: PathBuf,
    file: Arc<File>,
    map: MmapMut,
    first: u64,
    previous: Hash,
    end: usize,
    next: u64,
    hash: Hash,
}

/// What a scan of a segment found.
pub struct Scanned {
    /// Its records, in order.
    pub records: Vec<Record>,
    /// Whether bytes follow the last good record that are not zero: something was torn.
    pub torn: bool,
}

impl Segment {
    /// Makes the segment that begins with `first`, after the record whose hash is `previous`.
    ///
    /// # Errors
    /// If the disk is full or can't be written to.
    pub fn create(directory: &Path, first: u64, previous: Hash) -> io::Result<Self> {
        let path = directory.join(format!("{first:020}.spool"));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        // Space is taken now: a full disk must be an error here, not a fault while writing to the mapping.
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, SEGMENT_BYTES as u64)?;
        let mut map = map(&file)?;
        map[8..16].copy_from_slice(&first.to_le_bytes());
        map[16..48].copy_from_slice(&previous.0);
        // Last: a segment without its magic is one that was never begun.
        map[..8].copy_from_slice(MAGIC);
        Ok(Self {
            path,
            file: Arc::new(file),
            map,
            first,
            previous,
            end: HEADER_BYTES,
            next: first,
            hash: previous,
        })
    }

    /// Opens a segment and finds its end. `None` if it was never begun.
    ///
    /// # Errors
    /// If the file can't be read, or is not as long as it was made.
    pub fn open(path: &Path, stream: &str) -> io::Result<Option<(Self, Scanned)>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() < SEGMENT_BYTES as u64 {
            return Ok(None);
        }
        let map = map(&file)?;
        if map[..8] != *MAGIC {
            return Ok(None);
        }
        let first = u64::from_le_bytes(map[8..16].try_into().unwrap_or_default());
        let previous = Hash(map[16..48].try_into().unwrap_or_default());
        let mut segment = Self {
            path: path.to_owned(),
            file: Arc::new(file),
            map,
            first,
            previous,
            end: HEADER_BYTES,
            next: first,
            hash: previous,
        };
        let scanned = segment.scan(stream);
        Ok(Some((segment, scanned)))
    }

    fn scan(&mut self, stream: &str) -> Scanned {
        let mut records = Vec::new();
        while let Some(payload) = payload_at(&self.map, self.end) {
            let record = Record::after(self.hash, stream, self.next, payload.to_vec());
            self.end += RECORD_HEADER_BYTES + record.payload.len();
            self.next += 1;
            self.hash = record.hash;
            records.push(record);
        }
        let torn = self.map[self.end..].iter().any(|byte| *byte != 0);
        if torn {
            // What follows must not be taken for the beginning of the next record.
            self.map[self.end..].fill(0);
        }
        Scanned { records, torn }
    }

    /// Appends a payload; `None` if it does not fit any more.
    pub fn append(&mut self, stream: &str, payload: &[u8]) -> Option<u64> {
        let length = u32::try_from(payload.len()).ok()?;
        let start = self.end + RECORD_HEADER_BYTES;
        let end = start.checked_add(payload.len()).filter(|end| *end <= self.map.len())?;
        self.map[start..end].copy_from_slice(payload);
        self.map[self.end + 4..start].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
        // The length makes it a record, so it is written last.
        self.map[self.end..self.end + 4].copy_from_slice(&length.to_le_bytes());
        self.hash = chain(&self.hash, stream, self.next, payload);
        self.end = end;
        self.next += 1;
        Some(self.next - 1)
    }

    /// The records after `sequence`, at most `limit`.
    pub fn records_after(&self, stream: &str, sequence: u64, limit: usize) -> Vec<Record> {
        let mut records = Vec::new();
        let (mut at, mut number, mut hash) = (HEADER_BYTES, self.first, self.previous);
        while number < self.next && records.len() < limit {
            let Some(payload) = payload_at(&self.map, at) else { break };
            at += RECORD_HEADER_BYTES + payload.len();
            if number > sequence {
                let record = Record::after(hash, stream, number, payload.to_vec());
                hash = record.hash;
                records.push(record);
            } else {
                hash = chain(&hash, stream, number, payload);
            }
            number += 1;
        }
        records
    }

    /// The number of its first record.
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// The number that its next record gets.
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// The hash of its last record.
    pub const fn hash(&self) -> Hash {
        self.hash
    }

    /// Its file, to be synced without holding anything up.
    pub fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Removes its file.
    ///
    /// # Errors
    /// If the directory can't be written to.
    pub fn delete(self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

/// The payload that begins at an offset, if there is a whole one.
fn payload_at(map: &[u8], at: usize) -> Option<&[u8]> {
    let header = map.get(at..at + RECORD_HEADER_BYTES)?;
    let length = u32::from_le_bytes(header[..4].try_into().ok()?) as usize;
    let checksum = u32::from_le_bytes(header[4..].try_into().ok()?);
    if length == 0 {
        return None;
    }
    let start = at + RECORD_HEADER_BYTES;
    let payload = map.get(start..start.checked_add(length)?)?;
    (crc32fast::hash(payload) == checksum).then_some(payload)
}

#[expect(
    unsafe_code,
    reason = "a mapping is the one way to hand bytes to the kernel without a system call for each"
)]
fn map(file: &File) -> io::Result<MmapMut> {
    // SAFETY: the file is ours alone: its directory is readable by this UID only and locked by this process, it was
    // allocated in full before, and it is never truncated while it is mapped.
    unsafe { MmapMut::map_mut(file) }
}
