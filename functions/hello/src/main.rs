//! The smallest function: greets whoever asks.

fn main() {
    dormouse_guest::serve(|_| "Hello from Dormouse!\n");
}
