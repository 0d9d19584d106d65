//! One file of the spool: preallocated, mapped, appended to.
//!
//! What has been written to a shared mapping belongs to the kernel: it survives the death of the process at any moment.
//! A power cut can lose what was not synced yet; each record's link of the chain shows a torn one.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use memmap2::{Advice, MmapMut};
use model::audit::{Hash, Record, chain};

/// Size of a segment. Small enough that an idle spool costs little, large enough for some thousand calls.
pub const SEGMENT_BYTES: usize = 1 << 20;

const MAGIC: &[u8; 8] = b"CSSPOOL2";

/// Magic, first sequence, hash of the record before it.
const HEADER_BYTES: usize = 8 + 8 + 32;

/// Length and hash before each payload. The hash is the record's link of the chain, so that it is computed once, when
/// the record is written, and not again for each delivery.
const RECORD_HEADER_BYTES: usize = 4 + 32;

/// Pages that are asked for ahead: those of about a hundred calls.
const AHEAD_BYTES: usize = 64 << 10;

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
    /// The kernel was asked for the pages up to here.
    populated: usize,
    /// Where reading went on last: the next number, its offset, and the hash of the record before it.
    read: Cell<(u64, usize, Hash)>,
}

/// Records that follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The number of the first.
    pub first: u64,
    /// The hash of the record before it.
    pub previous: Hash,
    /// What is in them.
    pub payloads: Vec<Bytes>,
    /// The hash of the last.
    pub hash: Hash,
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
            populated: 0,
            read: Cell::new((first, HEADER_BYTES, previous)),
        })
    }

    /// Opens a segment and finds its end. `None` if it was never begun.
    ///
    /// # Errors
    /// If the file can't be read, or another version of this program made it.
    pub fn open(path: &Path, stream: &str) -> io::Result<Option<(Self, Scanned)>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() < SEGMENT_BYTES as u64 {
            return Ok(None);
        }
        let map = map(&file)?;
        if map[..8] == [0; 8] {
            return Ok(None);
        }
        if map[..8] != *MAGIC {
            let problem = format!("{} was written by another version; deliver it with that", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
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
            populated: 0,
            read: Cell::new((first, HEADER_BYTES, previous)),
        };
        let scanned = segment.scan(stream);
        Ok(Some((segment, scanned)))
    }

    fn scan(&mut self, stream: &str) -> Scanned {
        let mut records = Vec::new();
        while let Some((payload, hash)) = record_at(&self.map, self.end) {
            let record = Record::after(self.hash, stream, self.next, payload.to_vec());
            if record.hash != hash {
                break;
            }
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
        self.populate(end);
        let hash = chain(&self.hash, stream, self.next, payload);
        self.map[start..end].copy_from_slice(payload);
        self.map[self.end + 4..start].copy_from_slice(&hash.0);
        // The length makes it a record, so it is written last.
        self.map[self.end..self.end + 4].copy_from_slice(&length.to_le_bytes());
        self.hash = hash;
        self.end = end;
        self.next += 1;
        Some(self.next - 1)
    }

    /// Asks the kernel for the pages up to `end` and some more at once: each first touch of a page would cost a fault.
    /// It is a hint; where it is not understood, faults do the same.
    fn populate(&mut self, end: usize) {
        if end > self.populated {
            let to = (end + AHEAD_BYTES).min(self.map.len());
            let _ = self.map.advise_range(Advice::PopulateWrite, self.populated, to - self.populated);
            self.populated = to;
        }
    }

    /// The records after `sequence`, at most `limit`; `None` if there are none.
    pub fn run_after(&self, sequence: u64, limit: usize) -> Option<Run> {
        let kept = Some(self.read.get()).filter(|(next, _, _)| *next <= sequence + 1);
        let (mut next, mut at, mut hash) = kept.unwrap_or((self.first, HEADER_BYTES, self.previous));
        let step = |next: &mut u64, at: &mut usize, hash: &mut Hash| {
            let (payload, own) = record_at(&self.map, *at).filter(|_| *next < self.next)?;
            let begin = *at + RECORD_HEADER_BYTES;
            (*next, *at, *hash) = (*next + 1, begin + payload.len(), own);
            Some(begin..*at)
        };
        while next <= sequence {
            step(&mut next, &mut at, &mut hash)?;
        }
        let (first, begin, previous) = (next, at, hash);
        let mut places = Vec::with_capacity(limit);
        while places.len() < limit
            && let Some(place) = step(&mut next, &mut at, &mut hash)
        {
            places.push(place);
        }
        self.read.set((next, at, hash));
        // Copied once, as it lies there.
        let whole = Bytes::copy_from_slice(&self.map[begin..at]);
        let payloads = places.into_iter().map(|place| whole.slice(place.start - begin..place.end - begin));
        (next > first).then(|| Run { first, previous, payloads: payloads.collect(), hash })
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

/// The payload and the hash of the record that begins at an offset, if there is one.
fn record_at(map: &[u8], at: usize) -> Option<(&[u8], Hash)> {
    let header = map.get(at..at + RECORD_HEADER_BYTES)?;
    let length = u32::from_le_bytes(header[..4].try_into().ok()?) as usize;
    if length == 0 {
        return None;
    }
    let start = at + RECORD_HEADER_BYTES;
    let payload = map.get(start..start.checked_add(length)?)?;
    Some((payload, Hash(header[4..].try_into().ok()?)))
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
