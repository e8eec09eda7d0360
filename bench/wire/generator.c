/* A load generator for one core: keep-alive HTTP/1.1 over epoll, closed or open loop.
 *
 *   generator PORT REQUESTS TIMES CONNECTIONS SECONDS RATE [ANSWERS]
 *
 * REQUESTS holds whole requests, each after its length (uint32); they leave in turn.  Each run of 16 `#` in a head (eight
 * runs at most) is replaced by a hexadecimal number that no other request has.  RATE 0 keeps one request in flight on each
 * connection.  Otherwise requests are due at the times of a Poisson process of RATE a second, whether or not
 * earlier answers have come, and wait for a free connection.  Of every answer with status 200, TIMES gets how long after
 * the request was due it came, and how long after it was sent (floats, microseconds).  ANSWERS, where it is named, gets
 * of every answer the request's number, status and length (uint32), and the body.
 *
 * Prints one line: answered, status 200, 429, other, unanswered at the end, seconds.  An answer needs a Content-Length.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    int fd, busy, writes;      /* writes: epoll also waits for room */
    uint32_t request;
    size_t sent, have, need;   /* need: bytes of the whole answer, 0 while its head is incomplete */
    size_t head;
    int status;
    double due, began;         /* began: when its first byte was sent */
    char *in;
    size_t room;
} Connection;

enum { RUNS = 8, RUN = 16 };
static const char run[] = "################";
static struct { char *bytes; uint32_t size; int runs; char *run[RUNS]; } *requests;
static uint32_t count, following;
static Connection *connections;
static int *idle, idles, epoll_fd;
static double *waiting;
static size_t waits_from, waits_to, waits_room;
static FILE *times, *answers;
static long answered, good, refused, other, lost;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static uint64_t state = 88172645463325252ull;
static double uniform(void) {  /* in (0, 1] */
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return ((double)(state >> 11) + 1.0) / 9007199254740992.0;
}

static void watch(Connection *c, int writes) {
    struct epoll_event event = {.events = EPOLLIN | (writes ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event)) fail("epoll_ctl");
    c->writes = writes;
}

static void push_on(Connection *c) {
    while (c->sent < requests[c->request].size) {
        ssize_t n = send(c->fd, requests[c->request].bytes + c->sent, requests[c->request].size - c->sent, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN) { if (!c->writes) watch(c, 1); return; }
            fail("send");
        }
        c->sent += (size_t)n;
    }
    if (c->writes) watch(c, 0);
}

static void renumber(uint32_t request) {
    static uint64_t given;
    for (int at = 0; at < requests[request].runs; at++) {
        uint64_t rest = ++given * 0x9E3779B97F4A7C15ull;  /* odd: no two numbers are the same, and all digits change */
        for (int digit = 0; digit < RUN; digit++, rest >>= 4) requests[request].run[at][digit] = "0123456789abcdef"[rest & 15];
    }
}

static void start(Connection *c, double due) {
    c->request = following;
    renumber(following);
    following = (following + 1) % count;
    c->sent = c->have = c->need = 0;
    c->busy = 1;
    c->due = due;
    c->began = now_s();
    push_on(c);
}

/* Whether the head is complete; fills status, head and need. */
static int understand(Connection *c) {
    char *end = memmem(c->in, c->have, "\r\n\r\n", 4);
    if (!end) return 0;
    c->head = (size_t)(end - c->in) + 4;
    c->status = atoi(c->in + 9);
    for (char *line = c->in; line < end; line = (char *)memchr(line, '\n', (size_t)(end + 2 - line)) + 1) {
        if (!strncasecmp(line, "content-length:", 15)) {
            c->need = c->head + strtoul(line + 15, NULL, 10);
            return 1;
        }
        if (!memchr(line, '\n', (size_t)(end + 2 - line))) break;
    }
    fprintf(stderr, "an answer without Content-Length\n");
    exit(1);
}

static void finish(Connection *c, double now) {
    answered++;
    if (c->status == 200) {
        float us[2] = {(float)(1e6 * (now - c->due)), (float)(1e6 * (now - c->began))};
        good++;
        fwrite(us, sizeof us, 1, times);
    } else if (c->status == 429) refused++;
    else other++;
    if (answers) {
        uint32_t words[3] = {c->request, (uint32_t)c->status, (uint32_t)(c->need - c->head)};
        fwrite(words, sizeof words, 1, answers);
        fwrite(c->in + c->head, c->need - c->head, 1, answers);
    }
    c->busy = 0;
}

/* Whether an answer is complete. */
static int pull(Connection *c) {
    for (;;) {
        if (c->room - c->have < 65536) {
            c->room = c->room ? 2 * c->room : 131072;
            if (!(c->in = realloc(c->in, c->room))) fail("realloc");
        }
        ssize_t n = recv(c->fd, c->in + c->have, c->room - c->have, 0);
        if (n < 0 && errno == EAGAIN) return 0;
        if (n <= 0) { lost++; fprintf(stderr, "a connection was lost\n"); exit(1); }
        c->have += (size_t)n;
        if ((c->need || understand(c)) && c->have >= c->need) return 1;
    }
}

static void read_requests(const char *path) {
    FILE *file = fopen(path, "rb");
    uint32_t size;
    if (!file) fail(path);
    while (fread(&size, sizeof size, 1, file) == 1) {
        requests = realloc(requests, (count + 1) * sizeof *requests);
        requests[count].bytes = malloc(size);
        requests[count].size = size;
        if (fread(requests[count].bytes, size, 1, file) != 1) fail("a cut request");
        char *at = requests[count].bytes, *end = memmem(at, size, "\r\n\r\n", 4);
        int runs = 0;
        while (end && runs < RUNS && (at = memmem(at, (size_t)(end - at), run, RUN))) {
            requests[count].run[runs++] = at;
            at += RUN;
        }
        requests[count++].runs = runs;
    }
    fclose(file);
}

int main(int given, char **words) {
    if (given < 7) { fprintf(stderr, "generator PORT REQUESTS TIMES CONNECTIONS SECONDS RATE [ANSWERS]\n"); return 2; }
    int number = atoi(words[4]);
    double seconds = atof(words[5]), rate = atof(words[6]);
    read_requests(words[2]);
    if (!(times = fopen(words[3], "wb"))) fail(words[3]);
    if (given > 7 && !(answers = fopen(words[7], "wb"))) fail(words[7]);
    connections = calloc((size_t)number, sizeof *connections);
    idle = calloc((size_t)number, sizeof *idle);
    epoll_fd = epoll_create1(0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(words[1]))};
    inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    for (int i = 0; i < number; i++) {
        Connection *c = connections + i;
        int one = 1;
        c->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(c->fd, (struct sockaddr *)&to, sizeof to)) fail("connect");
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        fcntl(c->fd, F_SETFL, O_NONBLOCK);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event)) fail("epoll_ctl");
        idle[idles++] = i;
    }
    double begin = now_s(), end = begin + seconds, due = begin, now = begin;
    if (rate == 0.0) while (idles) start(connections + idle[--idles], now_s());
    else due -= log(uniform()) / rate;
    struct epoll_event events[256];
    int flying = rate == 0.0 ? number : 0;
    while (now < end || (flying && now < end + 5.0)) {
        int timeout = 100;
        if (rate > 0.0) {
            while (due <= now && due < end) {
                if (idles) { start(connections + idle[--idles], due); flying++; }
                else {
                    if (waits_to == waits_room) {
                        waits_room += 65536;
                        if (!(waiting = realloc(waiting, waits_room * sizeof *waiting))) fail("realloc");
                    }
                    waiting[waits_to++] = due;
                }
                due -= log(uniform()) / rate;
            }
            timeout = 0;  /* due times are met to microseconds: this core is the generator's own */
        } else if (now >= end) timeout = 10;
        int n = epoll_wait(epoll_fd, events, 256, timeout);
        for (int i = 0; i < n; i++) {
            Connection *c = events[i].data.ptr;
            if (events[i].events & EPOLLOUT) push_on(c);
            if (!(events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) || !c->busy || !pull(c)) continue;
            now = now_s();
            if (rate > 0.0 || now < end) finish(c, now);
            else c->busy = 0;  /* a closed loop is counted up to its end */
            if (rate == 0.0 && now < end) start(c, now);
            else if (rate > 0.0 && waits_from < waits_to && now < end) start(c, waiting[waits_from++]);
            else { idle[idles++] = (int)(c - connections); flying--; }
        }
        now = now_s();
    }
    lost += flying + (long)(waits_to - waits_from);
    if (answers) fclose(answers);
    fclose(times);
    printf("%ld %ld %ld %ld %ld %.6f\n", answered, good, refused, other, lost, fmin(now, end) - begin);
    return 0;
}
