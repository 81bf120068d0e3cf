//! Several processes over one store, of which one at a time takes a step, by chance from a seed: any
//! step may take any time, fail, take effect late, or be the last.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// Random numbers by a seed (SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// Whether something happens that does in so many of a thousand cases.
    pub(crate) fn hits(&mut self, of_thousand: u64) -> bool {
        self.below(1000) < of_thousand
    }
}

/// What happens to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    /// It has no effect, and its process hears of a failure.
    Failed,
    /// It has its effect, and its process hears of a failure.
    Unheard,
    /// Its process hears of a failure, and it has its effect at any later time.
    Late,
    /// Its process is no more.
    Killed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Running,
    Waiting,
    Go(Fate),
    Ended,
}

/// A request that is still on its way.
enum Request {
    Put(Path, PutPayload, PutOptions),
    Delete(Path),
}

struct Table {
    status: Vec<Status>,
    killed: Vec<bool>,
    /// Whether the step that a process waits for changes something.
    writes: Vec<bool>,
    /// Until which step a process takes none, unless no other one does.
    naps: Vec<u64>,
    late: Vec<Request>,
    chance: Chance,
    time: u64,
    steps: u64,
    /// Sums up who took which step, to compare two runs.
    trace: u64,
}

/// How likely what is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Odds {
    /// Of a thousand steps, those after which another process goes on.
    pub(crate) switches: u64,
    /// Those that fail, in each of three ways.
    pub(crate) failures: u64,
    /// Those that kill.
    pub(crate) kills: u64,
    /// Those before which time passes.
    pub(crate) delays: u64,
    /// How long at most.
    pub(crate) delay: u64,
    /// Those before which the process stops for long.
    pub(crate) naps: u64,
}

/// The processes, their clock, and what lies in the store.
pub(crate) struct Schedule {
    table: Mutex<Table>,
    turns: Vec<Condvar>,
    idle: Condvar,
    odds: Odds,
    objects: Arc<InMemory>,
}

impl Schedule {
    pub(crate) fn new(seed: u64, processes: usize, odds: Odds, objects: Arc<InMemory>) -> Self {
        let table = Table {
            status: vec![Status::Running; processes],
            killed: vec![false; processes],
            writes: vec![false; processes],
            naps: vec![0; processes],
            late: Vec::new(),
            chance: Chance(seed),
            time: 1_000_000,
            steps: 0,
            trace: 0,
        };
        Self {
            table: Mutex::new(table),
            turns: (0..processes).map(|_| Condvar::new()).collect(),
            idle: Condvar::new(),
            odds,
            objects,
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time, in virtual seconds.
    pub(crate) fn time(&self) -> u64 {
        self.table().time
    }

    pub(crate) fn pass(&self, seconds: u64) {
        self.table().time += seconds;
    }

    /// Steps so far.
    pub(crate) fn steps(&self) -> u64 {
        self.table().steps
    }

    pub(crate) fn trace(&self) -> u64 {
        self.table().trace
    }

    pub(crate) fn random(&self) -> u64 {
        self.table().chance.next()
    }

    pub(crate) fn was_killed(&self, process: usize) -> bool {
        self.table().killed[process]
    }

    /// Says that a process has nothing more to do.
    pub(crate) fn end(&self, process: usize) {
        self.table().status[process] = Status::Ended;
        self.idle.notify_one();
    }

    /// Waits for a process's turn.
    fn step(&self, process: usize, writes: bool) -> Fate {
        let mut table = self.table();
        if table.killed[process] {
            return Fate::Killed;
        }
        table.status[process] = Status::Waiting;
        table.writes[process] = writes;
        self.idle.notify_one();
        loop {
            if let Status::Go(fate) = table.status[process] {
                table.status[process] = Status::Running;
                return fate;
            }
            table = self.turns[process]
                .wait(table)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets the processes take their steps until all have ended.
    pub(crate) fn run(&self) {
        let mut current = 0;
        loop {
            let mut table = self.table();
            while table
                .status
                .iter()
                .any(|s| matches!(s, Status::Running | Status::Go(_)))
            {
                table = self
                    .idle
                    .wait(table)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            let waiting = table.status.iter().enumerate();
            let waiting: Vec<usize> = waiting
                .filter(|(_, s)| **s == Status::Waiting)
                .map(|(n, _)| n)
                .collect();
            if waiting.is_empty() {
                return;
            }
            if table.chance.hits(self.odds.delays) {
                table.time += table.chance.below(self.odds.delay);
            }
            if !table.late.is_empty() && table.chance.hits(20) {
                self.land_one(&mut table);
            }
            // Most of all before it writes: by then it has seen what it goes by.
            let naps = self.odds.naps * if table.writes[current] { 5 } else { 1 };
            if table.chance.hits(naps) {
                table.naps[current] = table.steps + table.chance.below(400);
            }
            let awake = waiting.iter().filter(|n| table.naps[**n] <= table.steps);
            let awake: Vec<usize> = awake.copied().collect();
            let waiting = if awake.is_empty() { waiting } else { awake };
            if !waiting.contains(&current) || table.chance.hits(self.odds.switches) {
                current = waiting[table.chance.below(waiting.len() as u64) as usize];
            }
            let f = self.odds.failures;
            let fate = match table.chance.below(1000) {
                n if n < f => Fate::Failed,
                n if n < 2 * f => Fate::Unheard,
                n if n < 3 * f => Fate::Late,
                n if n < 3 * f + self.odds.kills => Fate::Killed,
                _ => Fate::Done,
            };
            table.killed[current] |= fate == Fate::Killed;
            // A killed process may have sent its last request.
            let fate = match fate {
                Fate::Killed if table.chance.hits(300) => Fate::Unheard,
                Fate::Killed if table.chance.hits(500) => Fate::Late,
                fate => fate,
            };
            table.steps += 1;
            table.trace = table
                .trace
                .rotate_left(5)
                .wrapping_mul(31)
                .wrapping_add(current as u64 * 8 + fate as u64);
            table.status[current] = Status::Go(fate);
            drop(table);
            self.turns[current].notify_one();
        }
    }

    /// Lets all requests that are on their way take effect.
    pub(crate) fn land(&self) {
        let mut table = self.table();
        while !table.late.is_empty() {
            self.land_one(&mut table);
        }
    }

    fn land_one(&self, table: &mut Table) {
        let n = table.chance.below(table.late.len() as u64) as usize;
        match table.late.swap_remove(n) {
            Request::Put(path, payload, options) => {
                let put = self.objects.put_opts(&path, payload, options);
                let _ = put.now_or_never();
            }
            Request::Delete(path) => {
                let _ = self.objects.delete(&path).now_or_never();
            }
        }
    }

    fn later(&self, request: Request) {
        self.table().late.push(request);
    }
}

/// The store as one process sees it.
pub(crate) struct Port {
    pub(crate) schedule: Arc<Schedule>,
    pub(crate) process: usize,
}

fn failed() -> Error {
    Error::Generic {
        store: "schedule",
        source: "the connection was reset".into(),
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Port({})", self.process)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Port({})", self.process)
    }
}

impl Port {
    fn objects(&self) -> &InMemory {
        &self.schedule.objects
    }

    /// A step that changes nothing.
    fn look(&self) -> Result<()> {
        match self.schedule.step(self.process, false) {
            Fate::Done => Ok(()),
            _ => Err(failed()),
        }
    }

    /// The half of a listing on one side of a key, as of now.
    async fn part(
        &self,
        prefix: Option<&Path>,
        keep: impl Fn(&Path) -> bool,
    ) -> Result<Vec<ObjectMeta>> {
        self.look()?;
        let all: Vec<ObjectMeta> = self.objects().list(prefix).try_collect().await?;
        Ok(all.into_iter().filter(|m| keep(&m.location)).collect())
    }
}

#[async_trait::async_trait]
impl ObjectStore for Port {
    async fn put_opts(
        &self,
        to: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        match self.schedule.step(self.process, true) {
            Fate::Done => self.objects().put_opts(to, payload, options).await,
            Fate::Unheard => {
                let _ = self.objects().put_opts(to, payload, options).await;
                Err(failed())
            }
            Fate::Late => {
                let request = Request::Put(to.clone(), payload, options);
                self.schedule.later(request);
                Err(failed())
            }
            Fate::Failed | Fate::Killed => Err(failed()),
        }
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(failed())
    }

    async fn get_opts(&self, from: &Path, options: GetOptions) -> Result<GetResult> {
        self.look()?;
        self.objects().get_opts(from, options).await
    }

    async fn get_ranges(&self, from: &Path, ranges: &[Range<u64>]) -> Result<Vec<bytes::Bytes>> {
        self.look()?;
        self.objects().get_ranges(from, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let (schedule, process) = (Arc::clone(&self.schedule), self.process);
        let delete = move |path: Path| {
            let schedule = Arc::clone(&schedule);
            async move {
                let fate = schedule.step(process, true);
                if matches!(fate, Fate::Done | Fate::Unheard) {
                    let _ = schedule.objects.delete(&path).await;
                }
                if fate == Fate::Late {
                    schedule.later(Request::Delete(path.clone()));
                }
                match fate {
                    Fate::Done => Ok(path),
                    _ => Err(failed()),
                }
            }
        };
        locations.and_then(delete).boxed()
    }

    /// In the order of keys, and not at one moment: others may act in the midst of it.
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let listing = async {
            let mut all = self.part(prefix, |_| true).await?;
            all.sort_by(|a, b| a.location.cmp(&b.location));
            let cut = self.schedule.random() as usize % (all.len() + 1);
            let Some(pivot) = all.get(cut).map(|m| m.location.clone()) else {
                return Ok(all);
            };
            all.truncate(cut);
            all.extend(self.part(prefix, |p| *p >= pivot).await?);
            Ok(all)
        };
        let listed = listing.now_or_never().unwrap_or_else(|| Err(failed()));
        match listed {
            Ok(all) => futures_util::stream::iter(all.into_iter().map(Ok)).boxed(),
            Err(e) => futures_util::stream::once(async { Err(e) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.look()?;
        self.objects().list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(failed())
    }
}
