//! What whole-program tests share: real PostgreSQL servers, S3 servers, workloads and oracles.

#![allow(dead_code, reason = "not every helper is used by every test")]

pub mod pg;
