//! Is every file under tests/ part of the suite?

use std::fs;
use std::path::Path;

#[test]
fn every_test_file_is_listed_in_the_suite() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let suite = fs::read_to_string(tests.join("suite.rs")).unwrap();
    let forgotten: Vec<String> = fs::read_dir(&tests)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|name| name != "suite" && !suite.contains(&format!("mod {name};")))
        .collect();
    assert!(forgotten.is_empty(), "not listed in tests/suite.rs: {forgotten:?}");
}
