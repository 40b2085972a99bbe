//! (to be built)

/// (to be built)
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::from(2)
}
