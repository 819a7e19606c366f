CREATE TABLE IF NOT EXISTS product_images (
    product_id VARCHAR(64) NOT NULL,
    position BIGINT NOT NULL,
    url VARCHAR(2048) NOT NULL,
    alt VARCHAR(255) NOT NULL,
    PRIMARY KEY (product_id, position),
    FOREIGN KEY (product_id) REFERENCES products (id) ON DELETE CASCADE
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
