/*
 * digest.h
 *		Digests of tokens, and their constant-time comparison.
 */
#ifndef DIGEST_H
#define DIGEST_H

#define DIGEST_SHA256_LEN 32
#define DIGEST_SHA512_LEN 64

/* A digest that was begun and has not ended. */
typedef struct DigestWork
{
	struct evp_md_ctx_st *hash; /* NULL: with a secret */
	struct pg_hmac_ctx *hmac;	/* NULL: without a secret */
} DigestWork;

extern void digest_begin(DigestWork *work, const uint8 *secret,
						 size_t secret_len);
extern void digest_end(DigestWork *work, const char *data, size_t len,
					   uint8 *out);
extern void digest_sha256(const char *data, size_t len, uint8 *out);
extern void digest_sha512(const char *data, size_t len, uint8 *out);
extern void digest_hmac_sha256(const uint8 *secret, size_t secret_len,
							   const char *data, size_t len, uint8 *out);
extern bool digest_matches(const uint8 *a, const uint8 *b, size_t len);

#endif
