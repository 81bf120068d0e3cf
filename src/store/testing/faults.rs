use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// When something happens to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Before it was done: it has no effect.
    Before,
    /// After it was done, and before the caller hears of it.
    After,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Go,
    /// The caller is told that it failed.
    Fail,
}

/// An object store whose n-th operation (from 0; reads, writes, listings and deletions alike) goes
/// as a plan says. The plan may do anything meanwhile: run another writer, or end the process.
pub struct Faults {
    inner: Arc<dyn ObjectStore>,
    count: AtomicUsize,
    plan: Arc<Plan>,
}

/// What to do about an operation, by its number.
type Plan = dyn Fn(usize, Moment) -> Action + Send + Sync;

impl Faults {
    /// The store `inner`, by a plan.
    pub fn new(
        inner: Arc<dyn ObjectStore>,
        plan: impl Fn(usize, Moment) -> Action + Send + Sync + 'static,
    ) -> Self {
        Self {
            inner,
            count: AtomicUsize::new(0),
            plan: Arc::new(plan),
        }
    }

    /// Operations so far.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    fn before(&self) -> Result<usize> {
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        self.at(number, Moment::Before)
    }

    fn at(&self, number: usize, moment: Moment) -> Result<usize> {
        judge(&*self.plan, number, moment)
    }
}

fn judge(plan: &Plan, number: usize, moment: Moment) -> Result<usize> {
    match plan(number, moment) {
        Action::Go => Ok(number),
        Action::Fail => Err(Error::Generic {
            store: "faults",
            source: format!("operation {number} fails as planned").into(),
        }),
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faults({:?})", self.inner)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faults({})", self.inner)
    }
}

impl Faults {
    async fn around<T>(&self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        let number = self.before()?;
        // One that the store refused was done too: its caller hears an answer.
        let done = operation.await;
        self.at(number, Moment::After)?;
        done
    }
}

#[async_trait::async_trait]
impl ObjectStore for Faults {
    async fn put_opts(
        &self,
        to: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        self.around(self.inner.put_opts(to, payload, opts)).await
    }

    async fn put_multipart_opts(
        &self,
        to: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.around(self.inner.put_multipart_opts(to, opts)).await
    }

    async fn get_opts(&self, from: &Path, options: GetOptions) -> Result<GetResult> {
        self.around(self.inner.get_opts(from, options)).await
    }

    async fn get_ranges(&self, from: &Path, ranges: &[Range<u64>]) -> Result<Vec<bytes::Bytes>> {
        self.around(self.inner.get_ranges(from, ranges)).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let number = match self.before() {
            Ok(number) => number,
            Err(e) => return futures_util::stream::once(async { Err(e) }).boxed(),
        };
        let plan = Arc::clone(&self.plan);
        let done = self.inner.delete_stream(locations);
        done.and_then(move |path| {
            let judged = judge(&*plan, number, Moment::After);
            futures_util::future::ready(judged.map(|_| path))
        })
        .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.before().and_then(|n| self.at(n, Moment::After)) {
            Ok(_) => self.inner.list(prefix),
            Err(e) => futures_util::stream::once(async { Err(e) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.around(self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.around(self.inner.copy_opts(from, to, options)).await
    }
}
