//! A cluster that changes in every way in which files of relations change, generation by generation.

use super::pg::PgNode;

/// Everything is there for the first time.
pub fn begin(node: &PgNode) {
    for sql in [
        "CREATE TABLE accounts (aid int PRIMARY KEY, balance int NOT NULL, filler char(84))",
        "INSERT INTO accounts SELECT g, 0, '' FROM generate_series(1, 100000) g",
        "CREATE TABLE long (id int PRIMARY KEY, body text)",
        "ALTER TABLE long ALTER body SET STORAGE EXTERNAL",
        "INSERT INTO long SELECT g, repeat(md5(g::text), 200) FROM generate_series(1, 400) g",
        "CREATE TABLE shrinks AS SELECT g, repeat('x', 500) x FROM generate_series(1, 20000) g",
        "CREATE TABLE emptied AS SELECT g, repeat('y', 500) y FROM generate_series(1, 5000) g",
        "CREATE TABLE dropped AS SELECT g, repeat('z', 500) z FROM generate_series(1, 5000) g",
        "CREATE TABLE keys (k text)",
        "INSERT INTO keys SELECT md5(g::text) FROM generate_series(1, 30000) g",
        "CREATE INDEX ON keys (k)",
        "CREATE UNLOGGED TABLE fleeting AS SELECT g FROM generate_series(1, 5000) g",
        // Hint bits are set now, so that nothing changes behind PostgreSQL's back later.
        "VACUUM",
        "CHECKPOINT",
    ] {
        node.sql(sql);
    }
}

/// How many generations [`step`] knows.
pub const STEPS: usize = 4;

/// The next generation, 1 to [`STEPS`].
pub fn step(node: &PgNode, generation: usize) {
    let steps: &[&str] = match generation {
        // One in a hundred rows, at random: half of all pages.
        1 => &[
            "SELECT setseed(0.5)",
            "UPDATE accounts SET balance = balance + 1 WHERE aid IN \
             (SELECT (random() * 99999)::int + 1 FROM generate_series(1, 1000))",
            "UPDATE long SET body = repeat(md5(id::text || 'new'), 150) WHERE id % 50 = 0",
        ],
        // Relations shrink, vanish, come, and grow from nothing again; pages are rearranged.
        2 => &[
            "DELETE FROM shrinks WHERE g > 7001",
            "DELETE FROM accounts WHERE aid % 100 = 7",
            "VACUUM shrinks, accounts",
            "TRUNCATE emptied",
            "INSERT INTO emptied SELECT g, 'after' FROM generate_series(1, 3000) g",
            "DROP TABLE dropped",
            "CREATE TABLE came AS SELECT g, repeat('c', 300) c FROM generate_series(1, 8000) g",
            "INSERT INTO keys SELECT md5(g::text) FROM generate_series(30001, 33000) g",
        ],
        // New files for old relations, and relations that grow.
        3 => &[
            "VACUUM FULL shrinks",
            "REINDEX INDEX accounts_pkey",
            "INSERT INTO accounts SELECT g, 0, '' FROM generate_series(200001, 230000) g",
            "UPDATE long SET body = body || 'x' WHERE id % 7 = 0",
            "ALTER TABLE came ADD COLUMN d int DEFAULT 5",
        ],
        // Little: one page here, one there.
        4 => &["UPDATE accounts SET balance = 9 WHERE aid IN (1, 50000)", "INSERT INTO came VALUES (0, 'last')"],
        other => panic!("there is no generation {other}"),
    };
    for sql in steps {
        node.sql(sql);
    }
    // A checkpoint and hint bits, so that files on disk are what they are.
    node.sql("VACUUM");
    node.sql("CHECKPOINT");
}

/// What all tables hold, as one line.
pub fn contents(node: &PgNode) -> String {
    let tables = node.sql(
        "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class \
         WHERE relkind = 'r' AND relpersistence = 'p' AND relnamespace = 'public'::regnamespace",
    );
    let digests = tables.split(' ').map(|table| {
        let digest =
            node.sql(&format!("SELECT count(*), md5(string_agg(md5(t::text), '' ORDER BY t::text)) FROM {table} t"));
        format!("{table} {digest}")
    });
    digests.collect::<Vec<_>>().join("; ")
}
