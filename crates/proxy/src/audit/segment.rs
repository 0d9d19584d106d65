//! One file of the spool: preallocated, mapped, appended to.
//!
//! What has been written to a shared mapping belongs to the kernel: it survives the death of the process at any moment.
//! A power cut can lose what was not synced yet; each record's link of the chain shows a torn one.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use memmap2::{Advice, MmapMut};
use model::audit::{Hash, Linker, Record};
use prost::Message as _;
use wire::{payload, v1};

use super::line::{Common, Line};

/// Size of a segment. Small enough that an idle spool costs little, large enough for six thousand calls.
pub const SEGMENT_BYTES: usize = 1 << 20;

const MAGIC: &[u8; 8] = b"CSSPOOL3";

/// Magic, first sequence, hash of the record before it.
const HEADER_BYTES: usize = 8 + 8 + 32;

/// Length and hash before each entry, which is a record or a shape, as [`wire::payload`] has them. The hash is the
/// record's link of the chain, so that it is computed once, when the record is written, and not again for each delivery.
/// A shape, which is no link, has that of the record before it.
const ENTRY_HEADER_BYTES: usize = 4 + 32;

/// Marks a shape in the length.
const SHAPE: u32 = 1 << 31;

/// Shapes of a segment. Those of calls that differ in more than what is their own come one after the other, and what
/// finds no shape is written in full. Their numbers are one byte of a record.
const SHAPES_MAX: usize = 32;

/// Where a record has the number of its shape.
const NUMBER_AT: usize = payload::RECORD_BEGIN.len() - 1;

/// Pages that are asked for ahead: those of about a hundred calls.
const AHEAD_BYTES: usize = 16 << 10;

/// What a run's records take up, about: as much as the allocator keeps at hand.
const RUN_BYTES: usize = 96 << 10;

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
    /// By their numbers, which begin with 1.
    shapes: Vec<Shape>,
    /// The kernel was asked for the pages up to here.
    populated: usize,
    /// Where reading went on last: the next number, its offset, and the hash of the record before it.
    read: Cell<(u64, usize, Hash)>,
}

/// A shape of the records of a segment.
struct Shape {
    shape: v1::Shape,
    /// Which events have it; `None` if an earlier life has written it.
    common: Option<Common>,
}

/// Records that follow each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The number of the first.
    pub first: u64,
    /// The hash of the record before it.
    pub previous: Hash,
    /// What is in them, each as the encoding of a [`v1::ShapedRecord`].
    pub records: Vec<Bytes>,
    /// What those name.
    pub shapes: Vec<v1::Shape>,
    /// The hash of the last.
    pub hash: Hash,
    /// Whether it ended because it was long enough.
    pub full: bool,
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
            shapes: Vec::new(),
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
            shapes: Vec::new(),
            populated: 0,
            read: Cell::new((first, HEADER_BYTES, previous)),
        };
        let scanned = segment.scan(stream);
        Ok(Some((segment, scanned)))
    }

    fn scan(&mut self, stream: &str) -> Scanned {
        let mut records = Vec::new();
        while let Some(entry) = entry_at(&self.map, self.end) {
            if entry.is_shape {
                let Some(shape) = self.shape_of(&entry) else { break };
                self.shapes.push(Shape { shape, common: None });
            } else {
                let Some(record) = self.record_of(&entry, stream) else { break };
                self.next += 1;
                self.hash = record.hash;
                records.push(record);
            }
            self.end = entry.end;
        }
        let torn = self.map[self.end..].iter().any(|byte| *byte != 0);
        if torn {
            // What follows must not be taken for the beginning of the next record.
            self.map[self.end..].fill(0);
        }
        Scanned { records, torn }
    }

    /// The shape that an entry at the end is, if it is one that this segment's records may name.
    fn shape_of(&self, entry: &Entry<'_>) -> Option<v1::Shape> {
        let shape = v1::Shape::decode(entry.bytes).ok()?;
        let follows = shape.number as usize == self.shapes.len() + 1 && self.shapes.len() < SHAPES_MAX;
        (follows && entry.hash == self.hash).then_some(shape)
    }

    /// The record that an entry at the end is, if it follows the one before.
    fn record_of(&self, entry: &Entry<'_>, stream: &str) -> Option<Record> {
        let find = |number: u32| Some(&self.shapes.get((number as usize).checked_sub(1)?)?.shape);
        let payload = payload::read(Bytes::copy_from_slice(entry.bytes), find).ok()?;
        Some(Record::after(self.hash, stream, self.next, payload)).filter(|record| record.hash == entry.hash)
    }

    /// Appends an event; `None` if it does not fit any more.
    pub fn append(&mut self, linker: &mut Linker, stream: &str, line: &Line<'_>) -> Option<u64> {
        // The last first: it has the newest credential in it.
        let has = |shape: &Shape| shape.common.as_ref().is_some_and(|common| line.has(common));
        match self.shapes.iter().rposition(has).or_else(|| self.append_shape(line)) {
            Some(index) => self.append_record(linker, stream, line, Some(index)),
            None if line.is_whole() => self.append_record(linker, stream, line, None),
            None => self.append_record(linker, stream, &line.to_whole(), None),
        }
    }

    fn append_record(
        &mut self,
        linker: &mut Linker,
        stream: &str,
        line: &Line<'_>,
        shape: Option<usize>,
    ) -> Option<u64> {
        let place = self.place(line.record().len())?;
        let (number, pieces) = match shape {
            Some(index) => (u8::try_from(index + 1).ok()?, &self.shapes[index].shape.pieces[..]),
            None => (0, &[Bytes::new(), Bytes::new()][..]),
        };
        let write = |out: &mut Vec<u8>| line.put_payload(pieces, out);
        let hash = linker.link(&self.hash, stream, self.next, write);
        self.map[place.clone()].copy_from_slice(line.record());
        self.map[place.start + NUMBER_AT] = number;
        self.enter(place, 0, hash);
        self.hash = hash;
        self.next += 1;
        Some(self.next - 1)
    }

    /// Gives an event a shape, if there may be one more and it fits.
    fn append_shape(&mut self, line: &Line<'_>) -> Option<usize> {
        let index = self.shapes.len();
        if index == SHAPES_MAX {
            return None;
        }
        let common = line.common()?;
        let shape = v1::Shape { number: u32::try_from(index + 1).ok()?, pieces: line.pieces() };
        let bytes = shape.encode_to_vec();
        if bytes.len() > payload::SHAPE_BYTES_MAX {
            return None;
        }
        let place = self.place(bytes.len())?;
        self.map[place.clone()].copy_from_slice(&bytes);
        self.enter(place, SHAPE, self.hash);
        self.shapes.push(Shape { shape, common: Some(common) });
        Some(index)
    }

    /// Where the next entry's bytes belong; `None` if so many have no room any more.
    fn place(&mut self, length: usize) -> Option<Range<usize>> {
        let start = self.end + ENTRY_HEADER_BYTES;
        let end = start.checked_add(length).filter(|end| *end <= self.map.len())?;
        self.populate(end);
        Some(start..end)
    }

    /// Makes an entry of the bytes in this place.
    fn enter(&mut self, place: Range<usize>, mark: u32, hash: Hash) {
        self.map[self.end + 4..place.start].copy_from_slice(&hash.0);
        // The length makes it an entry, so it is written last. It is less than a segment.
        let length = place.len() as u32 | mark;
        self.map[self.end..self.end + 4].copy_from_slice(&length.to_le_bytes());
        self.end = place.end;
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
        let mut reader = Reader::new(&self.map[..self.end], kept.unwrap_or(self.beginning()));
        while reader.next <= sequence {
            reader.step()?;
        }
        let (first, begin, previous) = (reader.next, reader.at, reader.hash);
        let (mut places, mut named) = (Vec::with_capacity(limit), 0_u64);
        while places.len() < limit
            && reader.at - begin < RUN_BYTES
            && let Some(place) = reader.step()
        {
            named |= 1 << self.map[place.start + NUMBER_AT];
            places.push(place);
        }
        self.read.set((reader.next, reader.at, reader.hash));
        // Copied once, as it lies there.
        let whole = Bytes::copy_from_slice(&self.map[begin..reader.at]);
        let record = |place: Range<usize>| whole.slice(place.start - begin..place.end - begin);
        let shapes = self.shapes.iter().map(|shape| &shape.shape);
        let shapes = shapes.filter(|shape| named & 1 << shape.number != 0).cloned().collect();
        let records: Vec<_> = places.into_iter().map(record).collect();
        let full = reader.at < self.end;
        (!records.is_empty()).then(|| Run { first, previous, records, shapes, hash: reader.hash, full })
    }

    const fn beginning(&self) -> (u64, usize, Hash) {
        (self.first, HEADER_BYTES, self.previous)
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

/// Goes from record to record.
struct Reader<'a> {
    map: &'a [u8],
    next: u64,
    at: usize,
    hash: Hash,
}

impl<'a> Reader<'a> {
    const fn new(map: &'a [u8], (next, at, hash): (u64, usize, Hash)) -> Self {
        Self { map, next, at, hash }
    }

    /// Where the next record's bytes are.
    fn step(&mut self) -> Option<Range<usize>> {
        loop {
            let entry = entry_at(self.map, self.at)?;
            self.at = entry.end;
            if !entry.is_shape {
                self.next += 1;
                self.hash = entry.hash;
                return Some(entry.end - entry.bytes.len()..entry.end);
            }
        }
    }
}

/// What is between two lengths.
struct Entry<'a> {
    is_shape: bool,
    hash: Hash,
    bytes: &'a [u8],
    end: usize,
}

/// The entry that begins at an offset, if there is one.
fn entry_at(map: &[u8], at: usize) -> Option<Entry<'_>> {
    let start = at + ENTRY_HEADER_BYTES;
    let header = map.get(at..start)?;
    let length = u32::from_le_bytes(header[..4].try_into().ok()?);
    let end = start.checked_add((length & !SHAPE) as usize)?;
    let bytes = map.get(start..end).filter(|bytes| !bytes.is_empty())?;
    Some(Entry { is_shape: length & SHAPE != 0, hash: Hash(header[4..].try_into().ok()?), bytes, end })
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
