//! WAL of this machine, which may be newer than what the repository has.

use super::*;

/// A spool with one segment.
struct OneSegment {
    lineage: recovery::LineageId,
    path: std::path::PathBuf,
    name: SegmentName,
    whole: bool,
}

impl LocalSource for OneSegment {
    fn lineage(&self) -> Option<recovery::LineageId> {
        Some(self.lineage)
    }

    fn segment(&self, name: SegmentName) -> io::Result<Option<LocalSegment>> {
        if name != self.name {
            return Ok(None);
        }
        let file = fs::File::open(&self.path)?;
        let durable_bytes = if self.whole { MIB } else { 9000 };
        Ok(Some(LocalSegment { file, durable_bytes, whole: self.whole }))
    }

    fn has_later(&self, name: SegmentName) -> io::Result<bool> {
        Ok(name.timeline() == self.name.timeline() && name < self.name)
    }
}

fn one_segment(fixture: &Fixture, whole: bool) -> OneSegment {
    let path = fixture.dir.path().join("spooled");
    fs::write(&path, segment(1, 2)).unwrap();
    OneSegment { lineage: fixture.lineage.id(), path, name: name(1, 2), whole }
}

#[tokio::test]
async fn newer_wal_of_this_machine_is_served_before_the_repository_has_it() {
    let fixture = Fixture::new().await;
    fixture.put(1, [1]).await;
    fixture.put_tail(1, 2, 5000).await;
    let request = fixture.request("000000010000000000000002");
    let part = one_segment(&fixture, false);
    assert_eq!(fixture.fetch_with(&request, &part).await.exit_code(), 0);
    let bytes = fixture.take();
    assert_eq!(bytes[..9000], segment(1, 2)[..9000]);
    assert!(bytes.len() as u64 == MIB && bytes[9000..].iter().all(|&b| b == 0));
    let whole = one_segment(&fixture, true);
    fixture.faulty.add(Rule::new(Fault::Fail(StorageErrorKind::Transient)));
    assert_eq!(fixture.fetch_with(&request, &whole).await.exit_code(), 0, "even while the store is out of reach");
    assert_eq!(fixture.take(), segment(1, 2));
    fixture.faulty.heal();
    let missing = fixture.request("000000010000000000000000");
    assert_eq!(
        fixture.fetch_with(&missing, &whole).await.exit_code(),
        255,
        "local WAL behind a missing segment: a hole"
    );
}

#[tokio::test]
async fn wal_of_this_machine_is_of_the_same_lineage_or_not_served() {
    let fixture = Fixture::new().await;
    fixture.put(1, [1]).await;
    let mut other = one_segment(&fixture, true);
    other.lineage = "1-7".parse().unwrap();
    let request = fixture.request("000000010000000000000002");
    assert_eq!(fixture.fetch_with(&request, &other).await.exit_code(), 1);
}

#[tokio::test]
async fn while_the_repository_cannot_be_opened_whole_segments_of_this_machine_are_served() {
    let fixture = Fixture::new().await;
    let open = async || Err(crate::error::Error::new(ErrorCode::RepositoryDenied, "away"));
    let limits = FetchLimits { patience: Duration::ZERO, ..FetchLimits::default() };
    let code = async |request: &FetchRequest, whole| {
        run(request, open, &one_segment(&fixture, whole), limits, &SystemClock).await.exit_code()
    };
    let request = fixture.request("000000010000000000000002");
    assert_eq!(code(&request, false).await, 255, "more of it may be stored");
    let to_two = FetchRequest { timeline: Some(tli(2)), ..request.clone() };
    assert_eq!(code(&to_two, true).await, 255, "how much of it belongs to the way is not known");
    assert_eq!(code(&fixture.request("00000002.history"), true).await, 255);
    assert_eq!(code(&request, true).await, 0);
    assert_eq!(fixture.take(), segment(1, 2));
}
