//! The audit stream of this proxy on disk: numbered, chained, bounded, delivered at least once.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use model::audit::{CallResult, Event, Gap, Hash, Linker, Record, What};
use model::{DecisionId, UnixMillis};
use rustix::fs::FlockOperation;

use super::line::{self, Line};
use super::segment::{Run, SEGMENT_BYTES, Segment};

/// The spool, held by one proxy.
pub struct Spool {
    directory: PathBuf,
    stream: String,
    linker: Linker,
    segments: VecDeque<Segment>,
    /// The numbers of intents that have no outcome yet.
    open: BTreeSet<u64>,
    acknowledged: u64,
    segments_max: usize,
    dropped: u64,
    /// Outcomes that found no room; written as soon as everything before them is stored elsewhere.
    deferred: VecDeque<(Line<'static>, Option<u64>)>,
    _lock: File,
}

/// What an event does to the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It waits for its outcome.
    Intent,
    /// It opens and closes nothing.
    Alone,
}

/// There is no room for another event.
#[derive(Debug)]
pub struct Full;

impl Spool {
    /// Opens the spool, or begins one. Intents without an outcome are closed as `unknown`: the proxy died in between.
    ///
    /// # Errors
    /// If the directory can't be used, or another proxy holds it.
    pub fn open(directory: &Path, bytes_max: u64, now: UnixMillis) -> anyhow::Result<Self> {
        let describe = || format!("audit spool {}", directory.display());
        DirBuilder::new().recursive(true).mode(0o700).create(directory).with_context(describe)?;
        let lock = File::create(directory.join("lock")).with_context(describe)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .with_context(|| format!("{} is held by another proxy", describe()))?;
        let segments_max = usize::try_from(bytes_max / SEGMENT_BYTES as u64).unwrap_or(usize::MAX);
        if segments_max < 2 {
            bail!("the audit spool needs at least 2 MiB");
        }
        let mut spool = Self {
            stream: stream_name(directory).with_context(describe)?,
            linker: Linker::default(),
            directory: directory.to_owned(),
            segments: VecDeque::new(),
            open: BTreeSet::new(),
            acknowledged: 0,
            segments_max,
            dropped: 0,
            deferred: VecDeque::new(),
            _lock: lock,
        };
        spool.recover(now).with_context(describe)?;
        Ok(spool)
    }

    fn recover(&mut self, now: UnixMillis) -> anyhow::Result<()> {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(&self.directory)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "spool"))
            .collect();
        paths.sort();
        let (mut torn, mut orphans) = (false, Orphans::default());
        for path in paths {
            let Some((segment, scanned)) = Segment::open(&path, &self.stream)? else {
                // It was made but never begun; nothing is in it.
                std::fs::remove_file(&path)?;
                continue;
            };
            if let Some(last) = self.segments.back()
                && (segment.first() != last.next())
            {
                bail!("{} does not follow the segment before it", path.display());
            }
            torn |= scanned.torn;
            scanned.records.iter().for_each(|record| orphans.note(record));
            self.segments.push_back(segment);
        }
        if self.segments.is_empty() {
            self.segments.push_back(Segment::create(&self.directory, 1, Hash::default())?);
        }
        self.acknowledged = self.segments[0].first() - 1;
        if torn {
            self.append_within(&gap(now, None, "torn_tail")?, usize::MAX)?;
        }
        self.open = orphans.0.values().flatten().copied().collect();
        for (decision, intents) in orphans.0 {
            for intent in intents {
                let unknown = line::outcome(now, &line::ended(decision, CallResult::Unknown));
                self.append_within(&unknown, usize::MAX)?;
                self.open.remove(&intent);
            }
        }
        Ok(())
    }

    /// Appends an event that opens something or stands alone.
    ///
    /// # Errors
    /// [`Full`] if the spool has no room: one segment is kept for the outcomes of what is open.
    pub fn append(&mut self, event: &Line<'_>, kind: Kind, now: UnixMillis) -> Result<u64, Full> {
        if self.dropped > 0 {
            let gap = gap(now, Some(self.dropped), "spool_full").map_err(|_| Full)?;
            self.append_within(&gap, self.segments_max - 1).map_err(|_| Full)?;
            self.dropped = 0;
        }
        let sequence = self.append_within(event, self.segments_max - 1).map_err(|_| Full)?;
        if kind == Kind::Intent {
            self.open.insert(sequence);
        }
        Ok(sequence)
    }

    /// Appends the outcome of the intent with this number; uses the segment that is kept for it. If even that is full,
    /// the outcome waits for room: until it is written its intent keeps its segment. There are no more of them than
    /// calls were open when the spool filled up.
    pub fn append_outcome(&mut self, outcome: Line<'static>, intent: Option<u64>) {
        if self.append_within(&outcome, self.segments_max).is_err() {
            self.deferred.push_back((outcome, intent));
        } else if let Some(intent) = intent {
            self.open.remove(&intent);
        }
    }

    fn write_deferred(&mut self) {
        // Everything so far is stored elsewhere, so what this takes beyond the bound is given back at once.
        while self.acknowledged == self.last()
            && let Some((outcome, intent)) = self.deferred.pop_front()
        {
            if self.append_within(&outcome, usize::MAX).is_err() {
                self.deferred.push_front((outcome, intent));
                return;
            }
            if let Some(intent) = intent {
                self.open.remove(&intent);
            }
        }
    }

    /// An event was not recorded; the gap will be, as soon as there is room.
    pub const fn count_dropped(&mut self) {
        self.dropped += 1;
    }

    fn append_within(&mut self, event: &Line<'_>, segments_max: usize) -> io::Result<u64> {
        // The kept segment is for those whom it is kept for.
        if self.segments.len() > segments_max {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let current = self.segments.back_mut().ok_or(io::ErrorKind::NotFound)?;
        if let Some(sequence) = current.append(&mut self.linker, &self.stream, event) {
            return Ok(sequence);
        }
        let (next, hash) = (current.next(), current.hash());
        if !self.may_grow(segments_max) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut fresh = Segment::create(&self.directory, next, hash)?;
        let sequence =
            fresh.append(&mut self.linker, &self.stream, event).ok_or(io::ErrorKind::FileTooLarge)?;
        self.segments.push_back(fresh);
        self.acknowledge(self.acknowledged);
        Ok(sequence)
    }

    /// Whether another segment may be begun: there is room for it, or there will be, since all of the current one is
    /// stored elsewhere and it goes as soon as it is no longer the current one.
    fn may_grow(&self, segments_max: usize) -> bool {
        let done = |segment: &Segment| {
            segment.next() - 1 <= self.acknowledged && segment.next() <= self.needed_from()
        };
        self.segments.len() < segments_max
            || (self.segments.len() == segments_max && self.segments.iter().all(done))
    }

    /// The first event that a crash must still find here.
    fn needed_from(&self) -> u64 {
        self.open.first().copied().unwrap_or(u64::MAX)
    }

    /// Whether the next event that needs a new segment would find none.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.segments.len() > self.segments_max - 1 || !self.may_grow(self.segments_max - 1)
    }

    /// The stream's name.
    #[must_use]
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// The number of the last event.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.segments.back().map_or(0, |segment| segment.next() - 1)
    }

    /// Events that the control plane has not acknowledged.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.last().saturating_sub(self.acknowledged)
    }

    /// The events after `sequence`, at most `limit`; `None` if there are none.
    #[must_use]
    pub fn run_after(&self, sequence: u64, limit: usize) -> Option<Run> {
        let segment = self.segments.iter().find(|segment| segment.next() > sequence + 1)?;
        segment.run_after(sequence, limit)
    }

    /// The first number that is still here.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.segments.front().map_or(1, Segment::first)
    }

    /// Everything up to `sequence` is stored elsewhere. Segments go when all of theirs is, and no open intent is in
    /// them: a crash must still find it.
    pub fn acknowledge(&mut self, sequence: u64) {
        self.acknowledged = self.acknowledged.max(sequence.min(self.last()));
        self.write_deferred();
        let needed = self.needed_from();
        while self.segments.len() > 1
            && self.segments[0].next() - 1 <= self.acknowledged
            && self.segments[0].next() <= needed
        {
            if let Some(segment) = self.segments.pop_front()
                && let Err(error) = segment.delete()
            {
                tracing::warn!(stage = "audit", %error, "a delivered part of the spool could not be removed");
            }
        }
    }

    /// The files that may have been written to lately: the current one, and the one before it.
    #[must_use]
    pub fn current_files(&self) -> Vec<Arc<File>> {
        self.segments.iter().rev().take(2).map(Segment::file).collect()
    }
}

/// The event that events are missing.
fn gap(now: UnixMillis, count: Option<u64>, reason: &str) -> serde_json::Result<Line<'static>> {
    let what = What::Gap(Gap { count, reason: reason.to_owned() });
    Ok(Line::whole(&serde_json::to_vec(&Event { time: now, what })?))
}

/// The intents without outcome in what an earlier life has written. A call that was made a second time has two.
#[derive(Default)]
struct Orphans(HashMap<DecisionId, VecDeque<u64>>);

impl Orphans {
    fn note(&mut self, record: &Record) {
        match serde_json::from_slice::<Event>(&record.payload).map(|event| event.what) {
            Ok(What::Intent(intent)) => {
                self.0.entry(intent.decision).or_default().push_back(record.sequence);
            }
            Ok(What::Outcome(outcome)) => {
                let intents = self.0.entry(outcome.decision).or_default();
                let _ = intents.pop_front();
                if intents.is_empty() {
                    self.0.remove(&outcome.decision);
                }
            }
            _ => {}
        }
    }
}

/// The name of the stream that this directory holds: made once, with the directory.
fn stream_name(directory: &Path) -> anyhow::Result<String> {
    let path = directory.join("stream");
    match std::fs::read_to_string(&path) {
        Ok(name) if name.starts_with("proxy/") => Ok(name),
        Ok(_) => bail!("{} does not hold a stream's name", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let name = format!("proxy/{:032x}", rand::random::<u128>());
            service::files::write_atomically(&path, name.as_bytes(), 0o600)?;
            Ok(name)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use model::SpiffeId;
    use model::audit::{Outcome, Passed};

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_795_514_400_000);

    fn event(decision: u64, size: usize) -> Line<'static> {
        json(Event {
            time: NOW,
            what: What::Passed(Passed {
                decision: DecisionId(decision),
                caller: SpiffeId::new("spiffe://demo/a").unwrap(),
                address: "a".repeat(size),
                name: None,
                protocol: "tcp".into(),
                destination: None,
                bypass: None,
            }),
        })
    }

    fn json(event: Event) -> Line<'static> {
        Line::whole(&serde_json::to_vec(&event).unwrap())
    }

    /// Appends an event that stands alone.
    fn append(spool: &mut Spool, event: &Line<'_>) -> Result<u64, Full> {
        spool.append(event, Kind::Alone, NOW)
    }

    fn append_intent(spool: &mut Spool, decision: u64) -> Result<u64, Full> {
        spool.append(&intent(decision), Kind::Intent, NOW)
    }

    fn intent(decision: u64) -> Line<'static> {
        json(Event {
            time: NOW,
            what: What::Intent(model::audit::Intent {
                decision: DecisionId(decision),
                caller: SpiffeId::new("spiffe://demo/a").unwrap(),
                subject: None,
                action: "http".into(),
                method: "GET".into(),
                destination: "n/d".parse().unwrap(),
                authority: "a:443".into(),
                path: "/".into(),
                policies: vec![],
                version: model::Version::default(),
                provider: None,
                grant: None,
                upstream: "10.0.0.1:443".into(),
            }),
        })
    }

    fn all(spool: &Spool) -> Vec<Record> {
        let mut records: Vec<Record> = Vec::new();
        loop {
            let after = records.last().map_or(spool.first() - 1, |record| record.sequence);
            let Some(run) = spool.run_after(after, 100) else { return records };
            let (mut previous, last) = (run.previous, run.hash);
            let find = |number| run.shapes.iter().find(|shape| shape.number == number);
            for (sequence, record) in (run.first..).zip(run.records) {
                let payload = wire::payload::read(record, find).unwrap();
                records.push(Record::after(previous, spool.stream(), sequence, payload));
                previous = records.last().unwrap().hash;
            }
            assert_eq!(previous, last, "the spool has kept the same hashes");
        }
    }

    fn whole(records: &[Record]) -> bool {
        let linked = records
            .windows(2)
            .all(|pair| pair[1].previous == pair[0].hash && pair[1].sequence == pair[0].sequence + 1);
        linked && records.iter().all(Record::is_whole)
    }

    #[test]
    fn events_are_chained_and_survive_a_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(directory.path(), 8 << 20, NOW).unwrap();
        for n in 0..5000 {
            append(&mut spool, &event(n, 500)).unwrap();
        }
        let before = all(&spool);
        assert_eq!(before.len(), 5000);
        assert!(whole(&before));
        drop(spool);
        let mut spool = Spool::open(directory.path(), 8 << 20, NOW).unwrap();
        append(&mut spool, &event(1, 1)).unwrap();
        let after = all(&spool);
        assert_eq!(after.len(), 5001);
        assert!(whole(&after));
        assert_eq!(after[4999], before[4999]);
    }

    #[test]
    fn an_intent_without_outcome_is_closed_as_unknown() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(directory.path(), 8 << 20, NOW).unwrap();
        append_intent(&mut spool, 7).unwrap();
        drop(spool);
        let spool = Spool::open(directory.path(), 8 << 20, NOW).unwrap();
        let records = all(&spool);
        let last: Event = serde_json::from_slice(&records[1].payload).unwrap();
        assert!(matches!(
            last.what,
            What::Outcome(Outcome { decision: DecisionId(7), result: CallResult::Unknown, .. })
        ));
        drop(spool);
        assert_eq!(all(&Spool::open(directory.path(), 8 << 20, NOW).unwrap()).len(), 2, "closed once");
    }

    #[test]
    fn a_torn_tail_is_cut_off_and_told() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(directory.path(), 8 << 20, NOW).unwrap();
        append(&mut spool, &event(1, 100)).unwrap();
        append(&mut spool, &event(2, 100)).unwrap();
        drop(spool);
        let path = directory.path().join("00000000000000000001.spool");
        let mut bytes = std::fs::read(&path).unwrap();
        let position = bytes.windows(4).rposition(|window| window == b"aaaa").unwrap();
        bytes[position] = b'b';
        std::fs::write(&path, bytes).unwrap();
        let records = all(&Spool::open(directory.path(), 8 << 20, NOW).unwrap());
        assert_eq!(records.len(), 2);
        assert!(whole(&records));
        let last: Event = serde_json::from_slice(&records[1].payload).unwrap();
        assert!(matches!(last.what, What::Gap(Gap { ref reason, .. }) if reason == "torn_tail"));
    }

    #[test]
    fn a_torn_shape_takes_its_records_with_it_and_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(directory.path(), 8 << 20, NOW).unwrap();
        let outcome = |n| line::outcome(NOW, &line::ended(DecisionId(n), CallResult::Completed));
        append(&mut spool, &event(1, 100)).unwrap();
        (0..3).for_each(|n| spool.append_outcome(outcome(n), None));
        drop(spool);
        let path = directory.path().join("00000000000000000001.spool");
        let mut bytes = std::fs::read(&path).unwrap();
        let position = bytes.windows(9).position(|window| window == b"completed").unwrap();
        bytes[position] = b'C';
        std::fs::write(&path, bytes).unwrap();
        let mut spool = Spool::open(directory.path(), 8 << 20, NOW).unwrap();
        spool.append_outcome(outcome(7), None);
        let records = all(&spool);
        assert!(whole(&records));
        let reads = |record: &Record| serde_json::from_slice::<Event>(&record.payload).unwrap().what;
        assert!(matches!(reads(&records[1]), What::Gap(Gap { ref reason, .. }) if reason == "torn_tail"));
        assert_eq!((records.len(), &records[2].payload), (3, &outcome(7).payload(&outcome(7).pieces())));
    }

    #[test]
    fn a_full_spool_refuses_but_outcomes_still_fit() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(directory.path(), 2 << 20, NOW).unwrap();
        let opened = append_intent(&mut spool, 7).unwrap();
        let mut count = 0;
        while append(&mut spool, &event(count, 1000)).is_ok() {
            count += 1;
        }
        // Nor for small ones.
        while append(&mut spool, &event(count, 1)).is_ok() {}
        assert!(spool.is_full());
        spool.count_dropped();
        let outcome = Outcome {
            decision: DecisionId(7),
            result: CallResult::Completed,
            status: Some(200),
            code: None,
            bytes_up: 0,
            bytes_down: 0,
            duration_us: 1,
        };
        spool.append_outcome(line::outcome(NOW, &outcome), Some(opened));
        spool.acknowledge(spool.last());
        // Room again: the gap comes first, numbered like everything else.
        append(&mut spool, &event(1, 1)).unwrap();
        let records = all(&spool);
        let gap = records.iter().any(|record| {
            let event: Event = serde_json::from_slice(&record.payload).unwrap();
            matches!(event.what, What::Gap(Gap { count: Some(1), .. }))
        });
        assert!(gap && whole(&records));
    }

    #[test]
    fn outcomes_that_find_no_room_are_written_when_there_is() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(directory.path(), 2 << 20, NOW).unwrap();
        let mut open = Vec::new();
        while let Ok(number) = append_intent(&mut spool, open.len() as u64) {
            open.push(number);
        }
        let outcome = |decision| Outcome {
            decision: DecisionId(decision),
            result: CallResult::Completed,
            // Long enough that the kept segment does not hold them all.
            code: Some(model::Code::UpstreamBadAnswer),
            status: Some(200),
            bytes_up: u64::MAX,
            bytes_down: u64::MAX,
            duration_us: u64::MAX,
        };
        for decision in 0..3 * open.len() {
            // More outcomes than intents fit: the rest are of calls whose intents were delivered and are gone.
            let payload = line::outcome(NOW, &outcome(decision as u64));
            spool.append_outcome(payload, open.get(decision).copied());
        }
        assert!(append(&mut spool, &event(1, 10)).is_err(), "the kept segment is not for this");
        for _ in 0..10 {
            spool.acknowledge(spool.last());
        }
        assert!(append(&mut spool, &event(1, 10)).is_ok(), "there is room again");
        assert!(whole(&all(&spool)));
        drop(spool);
        let reopened = Spool::open(directory.path(), 2 << 20, NOW).unwrap();
        let unknown = all(&reopened).iter().any(|record| {
            let event: Event = serde_json::from_slice(&record.payload).unwrap();
            matches!(event.what, What::Outcome(Outcome { result: CallResult::Unknown, .. }))
        });
        assert!(!unknown, "every outcome was written");
    }

    #[test]
    fn what_calls_have_in_common_is_stored_once_and_read_back_in_every_run() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(directory.path(), 8 << 20, NOW).unwrap();
        // More kinds of outcome than a segment has shapes for, so that some are written in full.
        let outcome = |n: u64| {
            let completed = line::ended(DecisionId(n), CallResult::Completed);
            line::outcome(NOW, &Outcome { status: Some(200 + (n % 50) as u16), bytes_down: n, ..completed })
        };
        for n in 0..12_000 {
            spool.append_outcome(outcome(n), None);
        }
        drop(spool);
        let mut spool = Spool::open(directory.path(), 8 << 20, NOW).unwrap();
        for n in 12_000..13_000 {
            spool.append_outcome(outcome(n), None);
        }
        let records = all(&spool);
        assert!(whole(&records) && spool.segments.len() > 1);
        assert_eq!(records.len(), 13_000);
        let payload = |n| outcome(n).payload(&outcome(n).pieces());
        assert!((0..).zip(&records).all(|(n, record)| record.payload == payload(n)));
        let run = spool.run_after(5_000, 40).unwrap();
        assert_eq!((run.first, run.records.len(), run.full), (5_001, 40, true));
        assert!(run.shapes.len() < 40, "only those that its records name");
    }

    #[test]
    fn an_open_intent_keeps_its_segment() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(directory.path(), 16 << 20, NOW).unwrap();
        append_intent(&mut spool, 7).unwrap();
        for n in 0..3000 {
            append(&mut spool, &event(n, 1000)).unwrap();
        }
        spool.acknowledge(spool.last());
        assert_eq!((spool.first(), spool.pending()), (1, 0));
    }

    #[test]
    fn only_one_proxy_holds_it() {
        let directory = tempfile::tempdir().unwrap();
        let _held = Spool::open(directory.path(), 8 << 20, NOW).unwrap();
        assert!(Spool::open(directory.path(), 8 << 20, NOW).is_err());
    }
}
