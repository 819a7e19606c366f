//! The baseline of `scripts/bench`: an actix-web server that reads a body, answers 204, and does nothing else.

use actix_web::{App, HttpResponse, HttpServer, web};

async fn bare(body: web::Bytes) -> HttpResponse {
    std::hint::black_box(body.len());
    HttpResponse::NoContent().finish()
}

#[actix_web::main]
async fn main() -> std::io::Result<()> {
    let listen = std::env::args().nth(1).unwrap_or_else(|| String::from("127.0.0.1:0"));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let limit = web::PayloadConfig::new(10 << 20);
    let app = move || App::new().app_data(limit.clone()).default_service(web::to(bare));
    let server = HttpServer::new(app).workers(workers).bind(listen)?;
    for address in server.addrs() {
        println!("listening on {address}");
    }
    server.run().await
}
