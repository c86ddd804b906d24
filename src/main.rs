//! The `sorft-native` binary: hands over to [`sorft_native::cli`].

fn main() -> std::process::ExitCode {
    std::process::ExitCode::from(sorft_native::cli::run())
}
