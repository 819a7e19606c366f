//! The baseline of `scripts/bench`: an actix-web server that reads a body, answers 204, and does nothing else. Started with a
//! file, it answers with its bytes instead.
//!
//! `bare-handler ADDR [FILE]`

use actix_web::{App, HttpResponse, HttpServer, web};

async fn bare(body: web::Bytes, answer: web::Data<Option<web::Bytes>>) -> HttpResponse {
    std::hint::black_box(body.len());
    match answer.as_ref() {
        None => HttpResponse::NoContent().finish(),
        Some(bytes) => HttpResponse::Ok().content_type("application/json").body(bytes.clone()),
    }
}

#[actix_web::main]
async fn main() -> std::io::Result<()> {
    let listen = std::env::args().nth(1).unwrap_or_else(|| String::from("127.0.0.1:0"));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let limit = web::PayloadConfig::new(10 << 20);
    let answer = std::env::args().nth(2).map(std::fs::read).transpose()?.map(web::Bytes::from);
    let answer = web::Data::new(answer);
    let app = move || App::new().app_data(limit.clone()).app_data(answer.clone()).default_service(web::to(bare));
    let server = HttpServer::new(app).workers(workers).bind(listen)?;
    for address in server.addrs() {
        println!("listening on {address}");
    }
    server.run().await
}
