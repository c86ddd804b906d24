//! The `sorft-native` binary: hands over to [`sorft_native::cli`].

#[global_allocator]
static ALLOCATOR: sorft_native::ceiling::Allocator = sorft_native::ceiling::Allocator;

fn main() -> std::process::ExitCode {
    std::process::ExitCode::from(sorft_native::cli::run())
}
