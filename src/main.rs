fn main() -> std::process::ExitCode {
    // Only the test build has failpoints; FAILPOINTS says what they do.
    let _scenario = fail::has_failpoints().then(fail::FailScenario::setup);
    scheduler_bridge::cli::main(std::env::args_os().collect())
}
