/*
 * digest.c
 *		Digests of tokens, and their constant-time compare.
 *
 * Knows no catalog and no setting.  The hashes are PostgreSQL's own
 * (common/cryptohash.h), so the server's OpenSSL where it is built with it.
 */
#include "postgres.h"

#include "common/cryptohash.h"
#include "common/hmac.h"
#include "common/sha2.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "compat.h"
#include "token/digest.h"

static pg_cryptohash_ctx *sha256_context(void);

/* SHA-256 (FIPS 180-4) of the data into out, DIGEST_SHA256_LEN bytes. */
void
digest_sha256(const char *data, size_t len, uint8 *out)
{
	DigestWork	work;

	digest_begin(&work, NULL, 0);
	digest_end(&work, data, len, out);
}

/* SHA-512 (FIPS 180-4) of the data into out, DIGEST_SHA512_LEN bytes. */
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

/* HMAC-SHA-256 (RFC 2104) of the data into out, DIGEST_SHA256_LEN bytes. */
void
digest_hmac_sha256(const uint8 *secret, size_t secret_len, const char *data,
				   size_t len, uint8 *out)
{
	DigestWork	work;

	digest_begin(&work, secret, secret_len);
	digest_end(&work, data, len, out);
}

/*
 * Begin what one of the two above does: HMAC-SHA-256 with the secret, or (NULL)
 * SHA-256.  It takes as long as the rest, and needs no data yet.  No other
 * digest may be made before it ends.
 */
void
digest_begin(DigestWork *work, const uint8 *secret, size_t secret_len)
{
	work->hash = NULL;
	work->hmac = NULL;
	if (secret == NULL)
	{
		work->hash = sha256_context();
		if (work->hash == NULL || pg_cryptohash_init(work->hash) < 0)
			elog(ERROR, "could not begin a digest: %s",
				 pg_cryptohash_error(work->hash));
	}
	else
	{
		work->hmac = pg_hmac_create(PG_SHA256);
		if (work->hmac == NULL ||
			pg_hmac_init(work->hmac, secret, secret_len) < 0)
			elog(ERROR, "could not begin a digest: %s",
				 pg_hmac_error(work->hmac));
	}
}

/* Make the digest that was begun, of the data, into out. */
void
digest_end(DigestWork *work, const char *data, size_t len, uint8 *out)
{
	if (work->hmac == NULL)
	{
		if (pg_cryptohash_update(work->hash, (const uint8 *) data, len) < 0 ||
			pg_cryptohash_final(work->hash, out, DIGEST_SHA256_LEN) < 0)
			elog(ERROR, "could not compute a digest: %s",
				 pg_cryptohash_error(work->hash));
		return;
	}
	if (pg_hmac_update(work->hmac, (const uint8 *) data, len) < 0 ||
		pg_hmac_final(work->hmac, out, DIGEST_SHA256_LEN) < 0)
		elog(ERROR, "could not compute a digest: %s",
			 pg_hmac_error(work->hmac));
	pg_hmac_free(work->hmac);
}

/*
 * Whether two digests are equal.  The time that it takes tells the length and
 * nothing of the contents.  Not for telling which of two is greater.
 */
bool
digest_matches(const uint8 *a, const uint8 *b, size_t len)
{
	return timingsafe_bcmp(a, b, len) == 0;
}

/*
 * The context for SHA-256, made once: making one costs as much as a digest.  A
 * digest that is finished leaves nothing of its data in it.  It belongs to a
 * resource owner of its own, since it outlives every transaction's, and to a
 * memory context that does.
 */
static pg_cryptohash_ctx *
sha256_context(void)
{
	static pg_cryptohash_ctx *context = NULL;
	static ResourceOwner owner = NULL;
	ResourceOwner before = CurrentResourceOwner;
	MemoryContext before_in = CurrentMemoryContext;

	if (context != NULL)
		return context;
	if (owner == NULL)
		owner = ResourceOwnerCreate(NULL, "rk_apikeys digest");
	CurrentResourceOwner = owner;
	MemoryContextSwitchTo(TopMemoryContext);
	PG_TRY();
	{
		context = pg_cryptohash_create(PG_SHA256);
	}
	PG_FINALLY();
	{
		CurrentResourceOwner = before;
		MemoryContextSwitchTo(before_in);
	}
	PG_END_TRY();
	return context;
}
