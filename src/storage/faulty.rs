//! A store that misbehaves as a test's script says. An ordinary implementation: what stands above cannot tell.

use std::ops::{Range, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    Body, Capabilities, ObjectInfo, ObjectKey, PutOutcome, Sha256, Storage, StorageError, StorageErrorKind,
    StorageResult,
};

/// What is asked of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `put_new`
    Put,
    /// `get`
    Get,
    /// `get_range`
    GetRange,
    /// `head`
    Head,
    /// `list`
    List,
    /// `list_folders`
    ListFolders,
    /// `delete`, asked about each key
    Delete,
}

impl Operation {
    const fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::GetRange => "get_range",
            Self::Head => "head",
            Self::List => "list",
            Self::ListFolders => "list_folders",
            Self::Delete => "delete",
        }
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request fails with this kind and does nothing.
    Fail(StorageErrorKind),
    /// The request does its work, then fails as if the answer had been lost.
    LoseResponse,
    /// The request takes this long and then does its work.
    Delay(Duration),
    /// The request never ends.
    Hang,
    /// A get gives only so many bytes.
    Truncate(usize),
    /// A get gives bytes of which this bit, counted from the first byte's lowest, is flipped.
    FlipBit(usize),
}

/// When what goes wrong. Of several rules that match, the first one decides.
#[derive(Clone, Debug)]
pub struct Rule {
    operation: Option<Operation>,
    key: String,
    calls: Range<u64>,
    fault: Fault,
    matched: u64,
}

impl Rule {
    /// This fault, at every call of everything.
    pub fn new(fault: Fault) -> Self {
        Self { operation: None, key: String::new(), calls: 0..u64::MAX, fault, matched: 0 }
    }

    /// Only at this operation.
    #[must_use]
    pub fn on(mut self, operation: Operation) -> Self {
        self.operation = Some(operation);
        self
    }

    /// Only where the key or prefix contains this.
    #[must_use]
    pub fn key(mut self, part: impl Into<String>) -> Self {
        self.key = part.into();
        self
    }

    /// Only at these calls, the first one that fits the operation and the key being number 1.
    #[must_use]
    pub fn calls(mut self, calls: impl RangeBounds<u64>) -> Self {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let start = match calls.start_bound() {
            Included(&n) => n,
            Excluded(&n) => n + 1,
            Unbounded => 0,
        };
        let end = match calls.end_bound() {
            Included(&n) => n + 1,
            Excluded(&n) => n,
            Unbounded => u64::MAX,
        };
        self.calls = start..end;
        self
    }

    /// Counts the call if it fits; the fault if this call is one of those meant.
    fn meet(&mut self, operation: Operation, key: &str) -> Option<Fault> {
        if self.operation.is_some_and(|wanted| wanted != operation) || !key.contains(&self.key) {
            return None;
        }
        self.matched += 1;
        self.calls.contains(&self.matched).then_some(self.fault)
    }
}

/// A store between a test and another store.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Storage>,
    script: Mutex<Script>,
}

#[derive(Debug, Default)]
struct Script {
    rules: Vec<Rule>,
    calls: Vec<(Operation, String)>,
}

impl Faulty {
    /// Passes everything on to `inner` until a rule is added.
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Self { inner, script: Mutex::default() }
    }

    /// Adds a rule; it counts calls from now on.
    pub fn add(&self, rule: Rule) {
        self.script().rules.push(rule);
    }

    /// From now on everything works.
    pub fn heal(&self) {
        self.script().rules.clear();
    }

    /// Every call so far, with its key or prefix.
    pub fn calls(&self) -> Vec<(Operation, String)> {
        self.script().calls.clone()
    }

    /// Forgets the calls so far.
    pub fn forget_calls(&self) {
        self.script().calls.clear();
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every rule sees the call and counts it; the first that wants it decides.
    fn fault(&self, operation: Operation, key: &str) -> Option<Fault> {
        let mut script = self.script();
        script.calls.push((operation, key.to_owned()));
        let faults: Vec<_> = script.rules.iter_mut().filter_map(|rule| rule.meet(operation, key)).collect();
        faults.first().copied()
    }

    async fn meet<T>(
        &self,
        operation: Operation,
        key: &str,
        request: impl Future<Output = StorageResult<T>>,
        spoil: impl FnOnce(T, Fault) -> T,
    ) -> StorageResult<T> {
        let error = |kind, message| Err(StorageError::new(kind, operation.name(), self.place_of(key), message));
        match self.fault(operation, key) {
            None => request.await,
            Some(Fault::Fail(kind)) => error(kind, "a test wants this request to fail"),
            Some(Fault::LoseResponse) => {
                // What became of the request is what the caller never learns.
                drop(request.await);
                error(StorageErrorKind::Transient, "a test wants the answer to be lost")
            }
            Some(Fault::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                request.await
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(fault) => Ok(spoil(request.await?, fault)),
        }
    }
}

fn whole<T>(outcome: T, _fault: Fault) -> T {
    outcome
}

fn spoiled(bytes: Bytes, fault: Fault) -> Bytes {
    match fault {
        Fault::Truncate(len) => bytes.slice(..len.min(bytes.len())),
        Fault::FlipBit(bit) => {
            let mut bytes = bytes.to_vec();
            if let Some(byte) = bytes.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
            Bytes::from(bytes)
        }
        _ => bytes,
    }
}

#[async_trait]
impl Storage for Faulty {
    async fn put_new(&self, key: &ObjectKey, body: Body, sha256: Sha256) -> StorageResult<PutOutcome> {
        self.meet(Operation::Put, key.as_str(), self.inner.put_new(key, body, sha256), whole).await
    }

    async fn get(&self, key: &ObjectKey) -> StorageResult<Bytes> {
        self.meet(Operation::Get, key.as_str(), self.inner.get(key), spoiled).await
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StorageResult<Bytes> {
        self.meet(Operation::GetRange, key.as_str(), self.inner.get_range(key, range), spoiled).await
    }

    async fn head(&self, key: &ObjectKey) -> StorageResult<Option<u64>> {
        self.meet(Operation::Head, key.as_str(), self.inner.head(key), whole).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: Option<usize>) -> StorageResult<Vec<ObjectInfo>> {
        self.meet(Operation::List, prefix, self.inner.list(prefix, after, limit), whole).await
    }

    async fn list_folders(&self, prefix: &str) -> StorageResult<Vec<String>> {
        self.meet(Operation::ListFolders, prefix, self.inner.list_folders(prefix), whole).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StorageResult<()> {
        // One at a time, so that a script can stop a deletion in the middle.
        for key in keys {
            let one = self.inner.delete(std::slice::from_ref(key));
            self.meet(Operation::Delete, key.as_str(), one, whole).await?;
        }
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::{Fault, Faulty, Operation, Rule};
    use crate::codec::digest::sha256;
    use crate::storage::memory::MemoryStorage;
    use crate::storage::{Body, ObjectKey, PutOutcome, Storage, StorageErrorKind};

    fn key(text: &str) -> ObjectKey {
        ObjectKey::new(text).unwrap()
    }

    async fn put(store: &Faulty, name: &str) -> Result<PutOutcome, StorageErrorKind> {
        let body = Body::Bytes(Bytes::from_static(b"abc"));
        store.put_new(&key(name), body, sha256(b"abc")).await.map_err(|error| error.kind)
    }

    #[tokio::test]
    async fn rules_choose_by_operation_key_and_number_of_the_call() {
        let store = Faulty::new(Arc::new(MemoryStorage::new()));
        store.add(Rule::new(Fault::Fail(StorageErrorKind::Full)).on(Operation::Put).key("wal/").calls(2..=2));
        assert_eq!(put(&store, "wal/1").await, Ok(PutOutcome::Created));
        assert_eq!(put(&store, "other/1").await, Ok(PutOutcome::Created));
        assert_eq!(put(&store, "wal/2").await, Err(StorageErrorKind::Full));
        assert_eq!(put(&store, "wal/2").await, Ok(PutOutcome::Created));
        assert_eq!(store.calls().len(), 4);
        assert_eq!(store.calls()[1], (Operation::Put, "other/1".to_owned()));
    }

    #[tokio::test]
    async fn a_lost_answer_leaves_the_work_done() {
        let store = Faulty::new(Arc::new(MemoryStorage::new()));
        store.add(Rule::new(Fault::LoseResponse).on(Operation::Put).calls(..=1));
        assert_eq!(put(&store, "a").await, Err(StorageErrorKind::Transient));
        assert_eq!(put(&store, "a").await, Ok(PutOutcome::AlreadyExists));
    }

    #[tokio::test]
    async fn gets_can_be_spoiled() {
        let store = Faulty::new(Arc::new(MemoryStorage::new()));
        put(&store, "a").await.unwrap();
        store.add(Rule::new(Fault::Truncate(2)).on(Operation::Get));
        assert_eq!(store.get(&key("a")).await.unwrap(), "ab");
        store.heal();
        store.add(Rule::new(Fault::FlipBit(8)).on(Operation::GetRange));
        assert_eq!(store.get_range(&key("a"), 0..3).await.unwrap(), "acc");
        store.heal();
        assert_eq!(store.get(&key("a")).await.unwrap(), "abc");
    }
}
