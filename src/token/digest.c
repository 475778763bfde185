/*
 * digest.c
 *		Digests of tokens, and their constant-time comparison.
 *
 * This file reads no catalog and no setting.  SHA-256 is that of OpenSSL, which
 * pgcrypto needs too.  PostgreSQL's functions (common/cryptohash.h) would let
 * OpenSSL search for it in each digest, which takes longer than the digest.  The
 * other hashes are PostgreSQL's.
 */
#include "postgres.h"

#include <openssl/err.h>
#include <openssl/evp.h>

#include "common/cryptohash.h"
#include "common/hmac.h"
#include "common/sha2.h"
#include "miscadmin.h"

#include "compat.h"
#include "token/digest.h"

/* How much is hashed or compared between two looks for a cancel. */
#define DIGEST_CHUNK (1024 * 1024)

static EVP_MD_CTX *sha256_begin(void);
static void sha256_add(EVP_MD_CTX *hash, const char *data, size_t len);
static void sha256_fail(void);

/*
 * Write the SHA-256 (FIPS 180-4) of the data to out, DIGEST_SHA256_LEN bytes.
 * Data of more than DIGEST_CHUNK bytes can be cancelled.
 */
void
digest_sha256(const char *data, size_t len, uint8 *out)
{
	DigestWork	work;

	digest_begin(&work, NULL, 0);
	for (; len > DIGEST_CHUNK; data += DIGEST_CHUNK, len -= DIGEST_CHUNK)
	{
		sha256_add(work.hash, data, DIGEST_CHUNK);
		CHECK_FOR_INTERRUPTS();
	}
	digest_end(&work, data, len, out);
}

/*
 * Write the SHA-512 (FIPS 180-4) of the data to out, DIGEST_SHA512_LEN bytes.
 */
void
digest_sha512(const char *data, size_t len, uint8 *out)
{
	pg_cryptohash_ctx *hash = pg_cryptohash_create(PG_SHA512);

	if (hash == NULL ||
		pg_cryptohash_init(hash) < 0 ||
		pg_cryptohash_update(hash, (const uint8 *) data, len) < 0 ||
		pg_cryptohash_final(hash, out, DIGEST_SHA512_LEN) < 0)
		elog(ERROR, "could not compute a digest: %s",
			 pg_cryptohash_error(hash));
	pg_cryptohash_free(hash);
}

/*
 * Write the HMAC-SHA-256 (RFC 2104) of the data to out, DIGEST_SHA256_LEN
 * bytes.
 */
void
digest_hmac_sha256(const uint8 *secret, size_t secret_len, const char *data,
				   size_t len, uint8 *out)
{
	DigestWork	work;

	digest_begin(&work, secret, secret_len);
	digest_end(&work, data, len, out);
}

/*
 * Begin a digest: HMAC-SHA-256 with the secret, or SHA-256 if the secret is
 * NULL.  This step takes about as long as digest_end(), and needs no data yet.
 * The caller must call digest_end() before it begins another digest.
 */
void
digest_begin(DigestWork *work, const uint8 *secret, size_t secret_len)
{
	work->hash = NULL;
	work->hmac = NULL;
	if (secret == NULL)
		work->hash = sha256_begin();
	else
	{
		work->hmac = pg_hmac_create(PG_SHA256);
		if (work->hmac == NULL ||
			pg_hmac_init(work->hmac, secret, secret_len) < 0)
			elog(ERROR, "could not begin a digest: %s",
				 pg_hmac_error(work->hmac));
	}
}

/*
 * End a digest that was begun: write the digest of the data, DIGEST_SHA256_LEN
 * bytes, to out.
 */
void
digest_end(DigestWork *work, const char *data, size_t len, uint8 *out)
{
	if (work->hmac == NULL)
	{
		sha256_add(work->hash, data, len);
		if (!EVP_DigestFinal_ex(work->hash, out, NULL))
			sha256_fail();
		return;
	}
	if (pg_hmac_update(work->hmac, (const uint8 *) data, len) < 0 ||
		pg_hmac_final(work->hmac, out, DIGEST_SHA256_LEN) < 0)
		elog(ERROR, "could not compute a digest: %s",
			 pg_hmac_error(work->hmac));
	pg_hmac_free(work->hmac);
}

/*
 * Return whether two digests are equal.  The time depends on the length, and
 * not on the contents.  The result does not show which digest is greater.  Data
 * of more than DIGEST_CHUNK bytes can be cancelled.
 */
bool
digest_matches(const uint8 *a, const uint8 *b, size_t len)
{
	int			differs = 0;

	for (; len > DIGEST_CHUNK; a += DIGEST_CHUNK, b += DIGEST_CHUNK, len -= DIGEST_CHUNK)
	{
		differs |= timingsafe_bcmp(a, b, DIGEST_CHUNK);
		CHECK_FOR_INTERRUPTS();
	}
	return (differs | timingsafe_bcmp(a, b, len)) == 0;
}

/*
 * Begin a SHA-256, in this backend's context.  The first call makes the context,
 * in OpenSSL's memory, and finds the hash; the later ones begin with the same
 * hash again.  A finished digest leaves none of its data in the context.
 */
static EVP_MD_CTX *
sha256_begin(void)
{
	static EVP_MD_CTX *context = NULL;
	static bool found = false;

	if (context == NULL)
		context = EVP_MD_CTX_new();
	if (context == NULL ||
		!EVP_DigestInit_ex(context, found ? NULL : EVP_sha256(), NULL))
		sha256_fail();
	found = true;
	return context;
}

static void
sha256_add(EVP_MD_CTX *hash, const char *data, size_t len)
{
	if (!EVP_DigestUpdate(hash, data, len))
		sha256_fail();
}

/* Raise OpenSSL's error.  The next call needs an empty queue of errors. */
static void
sha256_fail(void)
{
	const char *reason = ERR_reason_error_string(ERR_get_error());

	ERR_clear_error();
	elog(ERROR, "could not compute a digest: %s",
		 reason == NULL ? "OpenSSL tells no reason" : reason);
}
