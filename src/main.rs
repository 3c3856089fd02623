fn main() -> std::process::ExitCode {
    scheduler_bridge::cli::main(std::env::args_os().collect())
}
