/*
 * undefined.c
 *		Does what it is told under valgrind's memcheck, with the secret bytes
 *		marked as undefined: memcheck then reports every branch and every index
 *		that depends on them.
 *
 * Linked with the objects of the extension's own build.  What they would call
 * of the server and never do here stays unresolved.
 *
 * Usage: undefined compare|digest|memcmp|parse
 */
#include "postgres.h"

#include <valgrind/memcheck.h>

#include "token/digest.h"
#include "token/token.h"

/* Kept by the compiler from knowing what is compared with what. */
static int	(*volatile plain_memcmp) (const void *, const void *, size_t) = memcmp;

static int
compare(bool (*equal) (const uint8 *, const uint8 *, size_t))
{
	static const size_t lengths[] = {DIGEST_SHA256_LEN, DIGEST_SHA512_LEN};
	int			agreed = 0;

	for (int l = 0; l < lengthof(lengths); l++)
		for (size_t differs = 0; differs <= lengths[l]; differs++)
		{
			uint8		stored[DIGEST_SHA512_LEN];
			uint8		presented[DIGEST_SHA512_LEN];
			bool		result;

			for (int i = 0; i < DIGEST_SHA512_LEN; i++)
				stored[i] = presented[i] = i * 7;
			if (differs < lengths[l])
				presented[differs] ^= 1;
			VALGRIND_MAKE_MEM_UNDEFINED(stored, lengths[l]);
			VALGRIND_MAKE_MEM_UNDEFINED(presented, lengths[l]);
			result = equal(stored, presented, lengths[l]);
			/* the answer is told to the caller */
			VALGRIND_MAKE_MEM_DEFINED(&result, sizeof(result));
			agreed += result == (differs == lengths[l]);
		}
	return agreed;
}

static bool
compare_memcmp(const uint8 *a, const uint8 *b, size_t len)
{
	return plain_memcmp(a, b, len) == 0;
}

int
main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (strcmp(what, "compare") == 0)
		printf("%d compares right\n", compare(digest_matches));
	else if (strcmp(what, "memcmp") == 0)
		printf("%d compares right\n", compare(compare_memcmp));
	else if (strcmp(what, "digest") == 0)
	{
		char		token[] = "rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j";
		uint8		pepper[32] = {1, 2, 3};
		uint8		digest[DIGEST_SHA512_LEN];

		/* once before: OpenSSL sets itself up */
		digest_sha256(token, strlen(token), digest);
		digest_hmac_sha256(pepper, sizeof(pepper), "x", 1, digest);
		VALGRIND_MAKE_MEM_UNDEFINED(token + 21, TOKEN_SECRET_LEN);
		VALGRIND_MAKE_MEM_UNDEFINED(pepper, sizeof(pepper));
		digest_sha256(token, sizeof(token) - 1, digest);
		digest_sha512(token, sizeof(token) - 1, digest);
		digest_hmac_sha256(pepper, sizeof(pepper), token, sizeof(token) - 1, digest);
		puts("3 digests");
	}
	else if (strcmp(what, "parse") == 0)
	{
		char		token[TOKEN_MAX_LEN + 1];
		size_t		len = token_make("rk", "prod", token);
		TokenParts	parts;

		VALGRIND_MAKE_MEM_UNDEFINED(token + len - TOKEN_TAIL_LEN, TOKEN_SECRET_LEN);
		printf("%d\n", token_parse(token, len, &parts));
	}
	else
		return 2;
	return 0;
}
